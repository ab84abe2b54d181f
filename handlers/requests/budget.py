"""What one request may still use up, counted over all of its parts together."""

from __future__ import annotations

from ..base.errors import TooLargeError
from ..spec import Limits

_ENTRIES_PER_SAMPLE = 17
"""Folders and hidden files of an archive are no samples, but reading over millions takes time."""


class RequestBudget:
    """Counts samples, archive entries, unpacked bytes and pixels of one request.

    A limit that each part, archive or image could use up anew would bound nothing: a request holds
    hundreds of them. Not for several threads.
    """

    def __init__(self, limits: Limits) -> None:
        """Start with nothing used.

        Args:
            limits: the deployment's bounds on one request.
        """
        self.limits = limits
        self._samples = 0
        self._entries = 0
        self._unpacked_bytes = 0
        self._pixels = 0

    @property
    def unpacked_bytes(self) -> int:
        """How many bytes were unpacked."""
        return self._unpacked_bytes

    @property
    def unpacked_bytes_left(self) -> int:
        """How many bytes may still be unpacked."""
        return self.limits.max_unpacked_bytes - self._unpacked_bytes

    def take_samples(self, count: int, where: str) -> None:
        """Count samples, before anything is made of them.

        Raises:
            TooLargeError: the request has more than `Limits.max_samples`.
        """
        self._samples += count
        if self._samples > self.limits.max_samples:
            raise TooLargeError(
                f"{where}: more than {self.limits.max_samples} samples in one request "
                "(limits.max_samples in the spec): split the request"
            )

    def take_entries(self, count: int, where: str) -> None:
        """Count entries of archives, those that are no samples included.

        Raises:
            TooLargeError: there are many times more entries than there may be samples.
        """
        self._entries += count
        max_entries = self.limits.max_samples * _ENTRIES_PER_SAMPLE
        if self._entries > max_entries:
            raise TooLargeError(
                f"{where}: more than {max_entries} entries in the archives of one request "
                f"({_ENTRIES_PER_SAMPLE} for each of limits.max_samples in the spec): leave out "
                "folders and hidden files, or split the request"
            )

    def take_unpacked_bytes(self, count: int, where: str) -> None:
        """Count bytes that come out of archives and compressed bodies.

        Raises:
            TooLargeError: they are more than `Limits.max_unpacked_bytes`.
        """
        self._unpacked_bytes += count
        if self._unpacked_bytes > self.limits.max_unpacked_bytes:
            raise TooLargeError(
                f"{where}: the request unpacks to more than {self.limits.max_unpacked_bytes} bytes "
                "(limits.max_unpacked_bytes in the spec): split the request"
            )

    def take_pixels(self, count: int, where: str) -> None:
        """Count the pixels of all images, before they are decoded.

        Args:
            count: pixels; those of formats that take longer to decode count several times.
            where: the sample, for the message.

        Raises:
            TooLargeError: they are more than `Limits.max_request_pixels`.
        """
        self._pixels += count
        if self._pixels > self.limits.max_request_pixels:
            raise TooLargeError(
                f"{where}: the images of the request take more than "
                f"{self.limits.max_request_pixels} pixels to decode, together "
                "(limits.max_request_pixels in the spec; docs/requests.md tells what counts "
                "several times): send fewer or smaller images, or split the request"
            )
