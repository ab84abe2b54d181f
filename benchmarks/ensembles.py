"""The ensembles that are measured; every server gets the same weights, images and transformation.

``python -m benchmarks.ensembles NAME`` prints how well the members of an ensemble tell their images
apart, and how little reduced precision and another resizer change their scores.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import pil_to_tensor

from . import digit_member, pictures, training

_TRAINING_SEED = 1_000_000
"""Differs from the seeds of the images for measuring, so that no member was fitted to those."""

_DEFAULT_SERVING = {"batch_size": 8, "max_batch_delay_ms": 5}


@dataclass(frozen=True)
class Ensemble(ABC):
    """An ensemble whose weights and images can be made again, equal on every machine.

    Attributes:
        name: name of the ensemble.
        members: names of the members.
        image_type: media type of the image files.
        num_training_images: number of images to which the weights are fitted.
    """

    name: str
    members: tuple[str, ...]
    image_type: str
    num_training_images: ClassVar[int]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the members' outputs."""
        return tuple(str(kind) for kind in range(pictures.NUM_KINDS))

    @abstractmethod
    def images(self, count: int, seed: int = 0) -> list[bytes]:
        """Make image files.

        Args:
            count: number of images.
            seed: seed of the random generator; another seed gives other images.
        """

    @abstractmethod
    def transform(self, image: Image.Image) -> Tensor:
        """Turn an image into a member's input with Pillow, as services in Python do it."""

    @abstractmethod
    def architecture(self, name: str) -> nn.Module:
        """Build a member with random weights."""

    def write_weights(self, folder: Path) -> None:
        """Write ``NAME.safetensors`` for every member; each call gives the same weights."""
        batch, targets = self._training_data()
        for seed, name in enumerate(self.members):
            torch.manual_seed(seed)
            module = self.architecture(name)
            with training.one_thread():
                self._fit(module, batch, targets)
            save_file(module.state_dict(), folder / f"{name}.safetensors")

    @abstractmethod
    def _fit(self, module: nn.Module, batch: Tensor, targets: Tensor) -> None:
        """Fit a member with random weights to the images; each call gives the same weights."""

    @abstractmethod
    def _member(self, name: str) -> dict[str, object]:
        """The keys of the spec that describe a member's architecture."""

    @abstractmethod
    def _preprocessing(self) -> dict[str, object]:
        """The preprocessing of the spec that corresponds to `transform`."""

    def load(self, name: str, folder: Path) -> nn.Module:
        """Build a member with the weights of `write_weights`, in evaluation mode."""
        module = self.architecture(name)
        module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        return module.eval()

    def batch(self, files: Sequence[bytes]) -> Tensor:
        """Decode and transform image files into a batch (N, channels, height, width) float32."""
        return torch.stack([self.transform(Image.open(io.BytesIO(file))) for file in files])

    def write(
        self,
        folder: Path,
        name: str,
        *,
        serving: Mapping[str, object] = _DEFAULT_SERVING,
        **runtime: object,
    ) -> Path:
        """Write a spec beside the weights, and return its path.

        Args:
            folder: the folder into which `write_weights` wrote.
            name: name of the endpoint.
            serving: the spec's settings under ``serving``.
            runtime: the spec's settings under ``runtime``.
        """
        spec = {
            "name": name,
            "version": "1.0",
            "task": "classification",
            "labels": list(self.labels),
            "preprocessing": {"shared": self._preprocessing()},
            "members": [
                {"name": member, "weights": f"{member}.safetensors", **self._member(member)}
                for member in self.members
            ],
            "runtime": runtime,
            "serving": dict(serving),
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        return path

    def _training_data(self) -> tuple[Tensor, Tensor]:
        """Return the inputs (N, channels, height, width) float32 and their kinds (N,) int64."""
        batch = self.batch(self.images(self.num_training_images, _TRAINING_SEED))
        return batch, torch.tensor(pictures.kinds(self.num_training_images))


class Torchvision(Ensemble):
    """Architectures of torchvision, for photographs cropped to 224 x 224 pixels as for ImageNet."""

    num_training_images = 100

    def images(self, count: int, seed: int = 0) -> list[bytes]:
        return pictures.photographs(count, seed)

    def transform(self, image: Image.Image) -> Tensor:
        pixels: Tensor = ImageClassification(crop_size=224, resize_size=256)(image.convert("RGB"))
        return pixels

    def architecture(self, name: str) -> nn.Module:
        module: nn.Module = getattr(torchvision.models, name)(num_classes=len(self.labels))
        return module

    def _fit(self, module: nn.Module, batch: Tensor, targets: Tensor) -> None:
        training.fit_last_layer(module, batch, targets)

    def _member(self, name: str) -> dict[str, object]:
        return {
            "architecture": f"torchvision.models.{name}",
            "arguments": {"num_classes": len(self.labels)},
        }

    def _preprocessing(self) -> dict[str, object]:
        return {
            "resize": 256,
            "crop": 224,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        }


class Digits(Ensemble):
    """Small members of one architecture for images of 8 x 8 gray pixels."""

    num_training_images = 200

    def images(self, count: int, seed: int = 0) -> list[bytes]:
        return pictures.digits(count, seed)

    def transform(self, image: Image.Image) -> Tensor:
        pixels: Tensor = pil_to_tensor(image.convert("L").resize((8, 8)))
        return pixels.float() / 255

    def architecture(self, name: str) -> nn.Module:
        return digit_member.SmallConvolutional()

    def _fit(self, module: nn.Module, batch: Tensor, targets: Tensor) -> None:
        training.fit(module, batch, targets)

    def write_weights(self, folder: Path) -> None:
        super().write_weights(folder)
        shutil.copy(digit_member.__file__, folder)

    def _member(self, name: str) -> dict[str, object]:
        return {"architecture": f"{Path(digit_member.__file__).name}:SmallConvolutional"}

    def _preprocessing(self) -> dict[str, object]:
        return {"color": "grayscale", "resize": [8, 8]}


_THREE = ("resnet18", "mobilenet_v3_small", "efficientnet_b0")
_FIVE_MORE = (
    "resnet34",
    "mobilenet_v3_large",
    "shufflenet_v2_x1_0",
    "mobilenet_v2",
    "regnet_y_400mf",
)
_MODERN = ("vit_b_16", "swin_t", "convnext_tiny", "regnet_y_400mf")

ENSEMBLES: Mapping[str, Ensemble] = {
    "three": Torchvision("three", _THREE, "image/jpeg"),
    "mixed": Torchvision("mixed", _THREE + _FIVE_MORE, "image/jpeg"),
    "modern": Torchvision("modern", _MODERN, "image/jpeg"),
    "digits": Digits("digits", tuple(f"convolutional{n:02}" for n in range(16)), "image/png"),
}


@torch.inference_mode()
def parity(ensemble: Ensemble, folder: Path, count: int = 64) -> dict[str, dict[str, float]]:
    """Measure how well each member answers on new images, and what changes its scores.

    Args:
        ensemble: the ensemble.
        folder: the folder into which `Ensemble.write_weights` wrote.
        count: number of images.

    Returns:
        For each member the share of right labels and the mean score of its labels. For bfloat16,
        and for images that were resized as tensors: the share of labels that stay the same, and the
        largest change of a probability.
    """
    files = ensemble.images(count, seed=1)
    batch = ensemble.batch(files)
    tensors = resized_as_tensors(ensemble, folder, files)
    targets = torch.tensor(pictures.kinds(count))
    results = {}
    for name in ensemble.members:
        module = ensemble.load(name, folder)
        expected = module(batch).softmax(dim=1)
        with torch.autocast("cpu", torch.bfloat16):
            reduced = module(batch).float().softmax(dim=1)
        resized = module(tensors).softmax(dim=1)
        labels = expected.argmax(dim=1)
        results[name] = {
            "right": _share(labels, targets),
            "score": float(expected.amax(dim=1).mean()),
            "bfloat16 equal": _share(reduced.argmax(dim=1), labels),
            "bfloat16 difference": float((reduced - expected).abs().max()),
            "resize equal": _share(resized.argmax(dim=1), labels),
            "resize difference": float((resized - expected).abs().max()),
        }
    return results


def resized_as_tensors(ensemble: Ensemble, folder: Path, files: Sequence[bytes]) -> Tensor:
    """Compute the members' inputs (N, channels, height, width) as torchserve-ensemble does."""
    from torchserve_ensemble.handlers.inputs.images import decode_image
    from torchserve_ensemble.handlers.inputs.preprocessing import preprocessors_of
    from torchserve_ensemble.handlers.spec import load_spec

    spec = load_spec(ensemble.write(folder, ensemble.name))
    ((preprocessor,), _) = preprocessors_of(spec, folder, torch.device("cpu"))
    return preprocessor([decode_image(file, max_pixels=10**6, name="image") for file in files])


def _share(labels: Tensor, expected: Tensor) -> float:
    """Compute the share of labels that equal the expected ones."""
    return float((labels == expected).float().mean())


def main() -> None:
    """Print the results of `parity` for an ensemble."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ensembles", description=__doc__)
    parser.add_argument("ensemble", choices=ENSEMBLES)
    ensemble = ENSEMBLES[parser.parse_args().ensemble]
    with tempfile.TemporaryDirectory() as temporary:
        ensemble.write_weights(Path(temporary))
        with training.one_thread():
            results = parity(ensemble, Path(temporary))
        for name, values in results.items():
            print(name, ", ".join(f"{key} {value:.4f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
