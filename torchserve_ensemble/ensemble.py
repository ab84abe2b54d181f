"""An ensemble in this process, for notebooks, scripts and tests; no server is needed."""

from __future__ import annotations

import io
import itertools
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
from .handlers.requests.parsing import Part, RawRequest
from .handlers.service import EnsembleService, Identity
from .handlers.spec import load_spec
from .serving.client import SEQUENCE_OPTIONS, Prediction, with_names

logger = logging.getLogger(__name__)

ImageLike = str | Path | bytes | Image.Image | NDArray[Any] | Tensor
"""One image: a path, the bytes of a file, a Pillow image, or an array or tensor of pixels.

Pixels are uint8 of shape (H, W), (H, W, 3), (H, W, 4) or (3, H, W). Floats of shape (C, H, W) are
an input that is preprocessed already. An array of four dimensions is a batch."""


class Ensemble:
    """Predicts with all members of an ensemble in this process.

    Answers are those of a TorchServe worker, since the same code decodes, runs, combines and writes
    them. As in a worker, loading sets how many threads torch uses (``runtime.threads`` in the spec;
    by default all cores).

    Example::

        ensemble = Ensemble.load("model_store/digits-1.0.mar")
        for prediction in ensemble.predict(["a.png", "b.png"], policy="any"):
            print(prediction.label, prediction.score, prediction.members)
    """

    def __init__(
        self, service: EnsembleService, folder: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        self._service = service
        # The extracted archive: mapped weights are read from it as long as the ensemble lives.
        self._folder = folder

    @classmethod
    def load(cls, path: str | Path, *, device: str | None = None) -> Ensemble:
        """Load an ensemble from its spec or from its archive.

        Args:
            path: the spec (``ensemble.yaml``) or an archive (``.mar``), which is checked against
                its own record first.
            device: ``cpu`` or ``cuda``; defaults to what the spec asks for.

        Raises:
            SpecError: a mistake in the spec.
            ArchiveError: the archive is damaged, or was not built by this project.
            MemberError: a member cannot be loaded.
        """
        path = Path(path)
        chosen = None if device is None else torch.device(device)
        if path.suffix != ".mar":
            return cls(load_service(load_spec(path), path.parent, device=chosen))
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
            device=chosen or choose_device(spec, gpu=None),
            compiled=spec.runtime.compile,
        )
        return cls(service, extracted)

    @property
    def description(self) -> dict[str, Any]:
        """Members, labels, policies, options and limits, as the server describes them."""
        return self._service.describe()

    @property
    def task(self) -> Task:
        """What the ensemble decides."""
        return self._service.spec.task

    @property
    def score_labels(self) -> tuple[str, ...]:
        """The labels that have scores; for presence the positive one alone."""
        return self._service.spec.score_labels

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 32, **options: Any
    ) -> list[Prediction]:
        """Predict images with all members.

        Args:
            images: one image or several, as `ImageLike` says.
            batch_size: images that are decoded and run together. Options over a whole sequence
                (smooth, frame_order, stream, frames) put all images into one request.
            **options: those of a request, e.g. ``policy="at_least"``,
                ``policy_parameters={"k": 2}``, ``members=["a", "b"]``, ``on_error="skip"``.

        Returns:
            One prediction for each image, in order. A file that holds several samples (an archive,
            a batch) has one for each of them.

        Raises:
            RequestError: an option is wrong, or an image cannot be read; with ``on_error="skip"``
                an unreadable image becomes a prediction with ``error``.
            ServerError: members failed.
        """
        return list(self.predict_each(images, batch_size=batch_size, **options))

    def predict_each(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 32, **options: Any
    ) -> Iterator[Prediction]:
        """Predict images as `predict` does, and yield each prediction as soon as it is there."""
        rest = enumerate(_several(images))
        if any(name in options for name in SEQUENCE_OPTIONS):
            batch_size = self._service.spec.limits.max_samples
        while batch := list(itertools.islice(rest, batch_size)):
            named = [_encoded(image, position) for position, image in batch]
            content = self.answer(named, **options)
            names = [name for name, _ in named]
            yield from map(Prediction.from_json, with_names(content["predictions"], names))

    def answer(self, images: Sequence[tuple[str, bytes]], **options: Any) -> dict[str, Any]:
        """Answer one request, exactly as the server would.

        Args:
            images: name and encoded bytes of each.
            **options: as for `predict`.

        Raises:
            RequestError: the request is refused (4xx).
            ServerError: members failed (5xx).
        """
        if "response" in options:
            raise RequestError(
                "option response: an answer in this process is always Python objects"
            )
        fields = [Part(name, "", _text(value)) for name, value in options.items()]
        parts = [Part("file", "application/octet-stream", data) for _, data in images]
        (response,) = self._service.answer([RawRequest([*parts, *fields])])
        content: dict[str, Any] = json.loads(response.body)
        if response.status != 200:
            kind = RequestError if response.status < 500 else ServerError
            error = kind(content["message"])
            error.status = response.status
            raise error
        return content


def _several(images: ImageLike | Iterable[ImageLike]) -> Iterator[ImageLike]:
    if isinstance(images, str | Path | bytes | Image.Image | np.ndarray | Tensor):
        return iter([images])
    return iter(images)


def _encoded(image: ImageLike, position: int) -> tuple[str, bytes]:
    """The name and the bytes of one image."""
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
            # In torch the channels come first, in NumPy last: (3, 4, 4) alone does not tell.
            image = image.permute(1, 2, 0)
        batch = image if image.dim() == 4 else image[None]
        return name, save({"input": batch.detach().cpu().contiguous()})
    if isinstance(image, Image.Image):
        # Pixels of a file are turned upright too before members see them.
        upright = ImageOps.exif_transpose(image)
        if upright.mode in DEEP_GRAY_MODES:
            tiff = io.BytesIO()
            upright.save(tiff, "TIFF")
            return name, tiff.getvalue()
        image = np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))
    if not isinstance(image, np.ndarray):
        raise RequestError(
            f"{name}: {type(image).__name__} is no image; give a path, bytes, a Pillow image, or "
            "an array or tensor of pixels"
        )
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[0] == 3 and image.shape[2] > 4:
        image = image.transpose(1, 2, 0)
    if image.ndim == 2:
        image = image[:, :, None]
    file = io.BytesIO()
    np.save(file, image if image.ndim == 4 else image[None], allow_pickle=False)
    return name, file.getvalue()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _warn_of_other_version(archive: Path, built: str | None) -> None:
    installed = metadata.version("torchserve-ensemble")
    if built != installed:
        logger.warning(
            "%s was built by torchserve-ensemble %s and runs with the installed %s here; a server "
            "runs the code that the archive carries",
            archive,
            built,
            installed,
        )
