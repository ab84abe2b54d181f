"""An ensemble in this process, for notebooks, scripts and tests; no server is needed."""

from __future__ import annotations

import io
import json
import logging
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors.torch import save
from torch import Tensor

from .handlers.archive.mar_file import verify_archive
from .handlers.base.archive_layout import ENSEMBLE, SPEC
from .handlers.base.errors import RequestError, ServerError
from .handlers.base.tasks import Task
from .handlers.deployment import choose_device, load_service
from .handlers.inputs.deep_gray import DEEP_GRAY_MODES
from .handlers.requests.raw_request import Part, RawRequest
from .handlers.service import EnsembleService, Identity
from .handlers.spec import Engine, load_spec, located_errors
from .serving.client import Prediction
from .serving.sample_names import FIELD, SEQUENCE_OPTIONS, in_batches, with_names

logger = logging.getLogger(__name__)

ImageLike = str | Path | bytes | Image.Image | NDArray[Any] | Tensor
"""One image: a path, the contents of a file, a Pillow image, or an array or tensor of pixels.

Pixels are uint8 of shape (H, W), (H, W, 3), (H, W, 4) or (3, H, W). Floats of shape (C, H, W) are
an input that the caller has preprocessed. An array of four dimensions is a batch of images."""


class Ensemble:
    """Predicts with all members of an ensemble, in this process.

    The answers are those that a TorchServe worker gives, since the same code decodes the images,
    runs the members, combines their scores and writes the answer. As in a worker, loading sets how
    many threads torch uses (``runtime.threads`` in the spec; by default all cores).

    Example::

        ensemble = Ensemble.load("model_store/digits-1.0.mar")
        for prediction in ensemble.predict(["a.png", "b.png"], policy="any"):
            print(prediction.label, prediction.score, prediction.members)
    """

    def __init__(
        self, service: EnsembleService, folder: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        self._service = service
        # The extracted archive stays on disk as long as the ensemble lives, since weights may be
        # mapped into memory from it.
        self._folder = folder

    @classmethod
    def load(cls, path: str | Path, *, device: str | None = None) -> Ensemble:
        """Load an ensemble from its spec or from its archive.

        Args:
            path: the spec (``ensemble.yaml``), or an archive (``.mar``). The files of an archive
                are compared with the archive's own record before they are used.
            device: ``cpu`` or ``cuda``; None: the device that the spec asks for.

        Raises:
            SpecError: the spec has a mistake.
            ArchiveError: the archive is damaged, or was not built by this project.
            MemberError: a member cannot be loaded.
        """
        path = Path(path)
        torch_device = None if device is None else torch.device(device)
        if path.suffix != ".mar":
            spec = load_spec(path)
            with located_errors(path):
                return cls(load_service(spec, path.parent, device=torch_device))
        record = verify_archive(path)
        _warn_of_other_version(path, record.built_with.get("torchserve-ensemble"))
        extracted = tempfile.TemporaryDirectory(prefix="ts-ensemble-")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(extracted.name)
        folder = Path(extracted.name)
        spec = load_spec(folder / SPEC)
        service = load_service(
            spec,
            folder / ENSEMBLE,
            identity=Identity(spec.name, spec.version, record.digest),
            device=torch_device or choose_device(spec, gpu=None),
            compiled=spec.runtime.engine is not Engine.TORCH,
        )
        return cls(service, extracted)

    @property
    def description(self) -> dict[str, Any]:
        """Members, labels, policies, options and limits: the server's answer to a describe call."""
        return self._service.describe()

    @property
    def task(self) -> Task:
        """The kind of answer that the ensemble gives, as the spec's key `task` names it."""
        return self._service.spec.task

    @property
    def score_labels(self) -> tuple[str, ...]:
        """The labels that have scores; for the task presence, only the positive label."""
        return self._service.spec.score_labels

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 32, **options: Any
    ) -> list[Prediction]:
        """Predict images with all members.

        Args:
            images: one image or several; `ImageLike` lists what counts as an image.
            batch_size: number of images that are decoded and run together. With an option that
                concerns a whole sequence (smooth, frame_order, stream, frames) all images are.
            **options: options of a request, e.g. ``policy="at_least"``,
                ``policy_parameters={"k": 2}``, ``members=["a", "b"]``, ``on_error="skip"``.

        Returns:
            One prediction for each image, in the images' order. A file that holds several samples
            (an archive, a batch) has one prediction for each of them.

        Raises:
            RequestError: an option is wrong, or an image cannot be read; with ``on_error="skip"``
                an unreadable image becomes a prediction with ``error``.
            ServerError: members failed.
        """
        return list(self.predict_each(images, batch_size=batch_size, **options))

    def predict_each(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 32, **options: Any
    ) -> Iterator[Prediction]:
        """Predict images as `predict` does, and yield the predictions of each batch at once."""
        if any(name in options for name in SEQUENCE_OPTIONS):
            batch_size = self._service.spec.limits.max_samples
        encoded = (_encode(image, position) for position, image in enumerate(_as_iterable(images)))
        for batch in in_batches(encoded, batch_size, options):
            content = self.answer(batch, **options)
            names = [name for name, _ in batch]
            yield from map(Prediction.from_json, with_names(content["predictions"], names))

    def answer(self, images: Sequence[tuple[str, bytes]], **options: Any) -> dict[str, Any]:
        """Answer one request with the JSON object that the server would answer with.

        Args:
            images: name and contents of each image or bundle of images.
            **options: options of the request, as for `predict`.

        Raises:
            RequestError: the request is refused (4xx).
            ServerError: members failed (5xx).
        """
        if "response" in options:
            raise RequestError(
                "leave out the option response: without a server, answers are Python objects"
            )
        fields = [Part(name, "", _text(value)) for name, value in options.items()]
        parts = [Part(FIELD, "application/octet-stream", data) for _, data in images]
        (response,) = self._service.answer([RawRequest([*parts, *fields])])
        content: dict[str, Any] = json.loads(response.body)
        if response.status != 200:
            kind = RequestError if response.status < 500 else ServerError
            error = kind(content["message"])
            error.status = response.status
            raise error
        return content


def _as_iterable(images: ImageLike | Iterable[ImageLike]) -> Iterator[ImageLike]:
    if isinstance(images, str | Path | bytes | Image.Image | np.ndarray | Tensor):
        return iter([images])
    return iter(images)


def _encode(image: ImageLike, position: int) -> tuple[str, bytes]:
    """Return the name of one image, and its contents in a format that a server accepts."""
    if isinstance(image, str | Path):
        try:
            return str(image), Path(image).read_bytes()
        except OSError as error:
            raise RequestError(f"{image}: cannot be read: {error.strerror}") from error
    name = f"image {position}"
    if isinstance(image, bytes):
        return name, image
    if isinstance(image, Tensor):
        if image.dim() == 2:
            image = image[:, :, None]
        elif image.dim() == 3 and image.dtype is torch.uint8 and image.shape[0] == 3:
            # (3, 4, 4) is ambiguous. In torch the channels come first, in NumPy they come last.
            image = image.permute(1, 2, 0)
        batch = image if image.dim() == 4 else image[None]
        return name, save({"input": batch.detach().cpu().contiguous()})
    if isinstance(image, Image.Image):
        # A server turns the image of a file upright before members see it, so this does too.
        upright = ImageOps.exif_transpose(image)
        if upright.mode in DEEP_GRAY_MODES:
            tiff = io.BytesIO()
            upright.save(tiff, "TIFF")
            return name, tiff.getvalue()
        image = np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))
    if not isinstance(image, np.ndarray):
        raise RequestError(
            f"{name}: an object of type {type(image).__name__} is no image; give a path, bytes, a "
            "Pillow image, or an array or tensor of pixels"
        )
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[0] == 3 and image.shape[2] > 4:
        image = image.transpose(1, 2, 0)
    if image.ndim == 2:
        image = image[:, :, None]
    file = io.BytesIO()
    np.save(file, image if image.ndim == 4 else image[None], allow_pickle=False)
    return name, file.getvalue()


def _text(value: Any) -> str:
    """Return the text of an option's value, as a client would write it into a form."""
    return value if isinstance(value, str) else json.dumps(value)


def _warn_of_other_version(archive: Path, build_version: str | None) -> None:
    """Log a warning if an archive was built by another version of this package."""
    installed = metadata.version("torchserve-ensemble")
    if build_version != installed:
        logger.warning(
            "%s was built by torchserve-ensemble %s and runs with the installed %s here; a server "
            "runs the code that the archive carries",
            archive,
            build_version,
            installed,
        )
