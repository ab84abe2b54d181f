"""Counts what one request uses up, over all of its parts together."""

from __future__ import annotations

from ..base.errors import TooLargeError
from ..spec import Limits

_MAX_ENTRIES_PER_SAMPLE = 17
"""Limit on the entries of all archives, divided by the limit on samples.

Folders and hidden files are not samples, but skipping millions of them takes time as well.
"""


class RequestBudget:
    """Counts samples, archive entries, unpacked bytes and pixels of one request.

    A limit that started anew for each part, archive or image would be no limit, because a request
    may have hundreds of them. A budget is used by one thread at a time; it has no lock.
    """

    def __init__(self, limits: Limits) -> None:
        """Make the budget of a request that has used nothing yet.

        Args:
            limits: the deployment's limits on one request.
        """
        self.limits = limits
        self._samples = 0
        self._entries = 0
        self._unpacked_bytes = 0
        self._pixels = 0

    @property
    def unpacked_bytes(self) -> int:
        """Number of bytes that archives and compressed bodies have unpacked to so far."""
        return self._unpacked_bytes

    @property
    def unpacked_bytes_left(self) -> int:
        """Number of bytes that archives and compressed bodies may still unpack to."""
        return self.limits.max_unpacked_bytes - self._unpacked_bytes

    def take_samples(self, count: int, where: str) -> None:
        """Count samples, before any object is made for them.

        Args:
            count: number of samples.
            where: the part or tensor that contains the samples, for the message.

        Raises:
            TooLargeError: the request has more samples than `Limits.max_samples`.
        """
        self._samples += count
        if self._samples > self.limits.max_samples:
            raise TooLargeError(
                f"{where}: more than {self.limits.max_samples} samples in one request "
                "(limits.max_samples in the spec): split the request"
            )

    def take_entries(self, count: int, where: str) -> None:
        """Count entries of archives, including those that are not samples.

        Args:
            count: number of entries.
            where: the archive, for the message.

        Raises:
            TooLargeError: the archives have more entries than `_MAX_ENTRIES_PER_SAMPLE` for each
                sample that the request may have.
        """
        self._entries += count
        max_entries = self.limits.max_samples * _MAX_ENTRIES_PER_SAMPLE
        if self._entries > max_entries:
            raise TooLargeError(
                f"{where}: more than {max_entries} entries in the archives of one request "
                f"({_MAX_ENTRIES_PER_SAMPLE} for each of limits.max_samples in the spec): leave "
                "out folders and hidden files, or split the request"
            )

    def take_unpacked_bytes(self, count: int, where: str) -> None:
        """Count bytes that archives and compressed bodies unpack to.

        Args:
            count: number of bytes; those of compressions that are slow to unpack count several
                times.
            where: the archive or body, for the message.

        Raises:
            TooLargeError: the request unpacks to more bytes than `Limits.max_unpacked_bytes`.
        """
        self._unpacked_bytes += count
        if self._unpacked_bytes > self.limits.max_unpacked_bytes:
            raise TooLargeError(
                f"{where}: the request unpacks to more than {self.limits.max_unpacked_bytes} bytes "
                "(limits.max_unpacked_bytes in the spec): split the request"
            )

    def take_pixels(self, count: int, where: str) -> None:
        """Count the pixels of an image before it is decoded.

        Args:
            count: number of pixels; those of formats that are slow to decode count several times.
            where: the sample, for the message.

        Raises:
            TooLargeError: the images have more pixels than `Limits.max_request_pixels`.
        """
        self._pixels += count
        if self._pixels > self.limits.max_request_pixels:
            raise TooLargeError(
                f"{where}: the images of the request have together more than "
                f"{self.limits.max_request_pixels} pixels (limits.max_request_pixels in the spec; "
                "docs/requests.md lists which pixels count several times): send fewer or smaller "
                "images, or split the request"
            )
