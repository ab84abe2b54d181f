"""TorchServe's inference API for ensembles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import requests

from ..handlers.errors import RequestError, ServerError

DEFAULT_ADDRESS = "http://127.0.0.1:8080"
"""Where TorchServe listens if nothing else is configured."""


class InferenceClient:
    """Sends images and options, keeps the connection, and never waits without a limit.

    Args:
        address: e.g. ``http://127.0.0.1:8080``.
        token: the inference key, where token authorization is on.
        timeout: seconds for each call.
    """

    def __init__(self, address: str, *, token: str | None = None, timeout: float = 60) -> None:
        self.address = address.rstrip("/")
        self._timeout = timeout
        self._session = requests.Session()
        if token is not None:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def predict(
        self,
        name: str,
        images: Sequence[tuple[str, bytes]],
        *,
        version: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """``POST /predictions/NAME[/VERSION]`` as one form, every image under the name ``file``.

        Args:
            name: the model.
            images: file name and encoded bytes of each.
            version: instead of the default version.
            options: e.g. ``{"policy": "any"}``.

        Returns:
            The answer, as the README shows it.

        Raises:
            RequestError: the server refuses the request (4xx), in its own words.
            ServerError: no answer, or a failure of the server (5xx).
        """
        path = f"/predictions/{name}" if version is None else f"/predictions/{name}/{version}"
        fields = [("file", (file, data, "application/octet-stream")) for file, data in images]
        try:
            answer = self._session.post(
                self.address + path, files=fields, data=options, timeout=self._timeout
            )
        except requests.Timeout as error:
            raise ServerError(
                f"{self.address}{path}: no answer within {self._timeout:g} s; see "
                "`ts-ensemble status`, or raise the timeout"
            ) from error
        except requests.RequestException as error:
            raise ServerError(
                f"{self.address}{path}: no server answers; start one with `ts-ensemble serve` "
                f"({error})"
            ) from error
        try:
            content: dict[str, Any] = answer.json()
        except ValueError:
            content = {"message": answer.text[:300]}
        if answer.status_code != 200:
            kind = RequestError if answer.status_code < 500 else ServerError
            refusal = kind(str(content.get("message", answer.reason)))
            refusal.status = answer.status_code
            raise refusal
        return content
