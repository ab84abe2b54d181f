"""The ensemble that is measured: three torchvision members with fixed weights, and JPEG images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms._presets import ImageClassification

MEMBERS = ("resnet18", "mobilenet_v3_small", "efficientnet_b0")
LABELS = 10
_SPREAD = 0.2


def transform() -> ImageClassification:
    """224 px, as ImageNet's classifiers take it."""
    return ImageClassification(crop_size=224, resize_size=256)


def module(name: str, folder: Path) -> nn.Module:
    """A member in evaluation mode, with the weights of `write`."""
    from safetensors.torch import load_file

    member = getattr(torchvision.models, name)(num_classes=LABELS)
    member.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return member.eval()


def write(folder: Path, precision: str) -> Path:
    """Write weights, the same each time, and the spec.

    In untrained members the signal dies out, and all images are answered alike. Their normalisation
    is set on the images and the last layer spread, so that a wrong answer would show.
    """
    preprocess = transform()
    batch = torch.stack(
        [preprocess(Image.open(io.BytesIO(file)).convert("RGB")) for file in images(32)]
    )
    for seed, name in enumerate(MEMBERS):
        torch.manual_seed(seed)
        member = getattr(torchvision.models, name)(num_classes=LABELS)
        for layer in member.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None
        with torch.no_grad():
            member.train()(batch)
            last = [layer for layer in member.modules() if isinstance(layer, nn.Linear)][-1]
            logits = member.eval()(batch)
            # Each label has its images; close scores keep bfloat16 within parity.
            last.bias -= logits.mean(dim=0)
            scale = (_SPREAD / logits.std(dim=0)).unsqueeze(1)
            last.weight *= scale
            last.bias *= scale.squeeze(1)
        save_file(member.state_dict(), folder / f"{name}.safetensors")
    spec = {
        "name": f"three-{precision}",
        "version": "1.0",
        "task": "classification",
        "labels": [str(label) for label in range(LABELS)],
        "preprocessing": {
            "imagenet": {
                "resize": 256,
                "crop": 224,
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            }
        },
        "members": [
            {
                "name": name,
                "architecture": f"torchvision.models.{name}",
                "arguments": {"num_classes": LABELS},
                "weights": f"{name}.safetensors",
            }
            for name in MEMBERS
        ],
        "runtime": {"precision": precision},
        "serving": {"batch_size": 8, "max_batch_delay_ms": 5},
    }
    path = folder / f"ensemble-{precision}.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def images(count: int) -> list[bytes]:
    """JPEG files of 320 x 280 pixels, each of its own colour with smooth noise on it.

    The colours keep the labels of untrained members apart, the noise compresses as photographs do.
    """
    generator = np.random.default_rng(0)
    files = []
    for _ in range(count):
        color = generator.integers(0, 256, 3)
        noise = generator.integers(-60, 61, (14, 16, 3))
        small = np.clip(color + noise, 0, 255).astype(np.uint8)
        target = io.BytesIO()
        Image.fromarray(small).resize((320, 280), Image.Resampling.BICUBIC).save(
            target, "JPEG", quality=90
        )
        files.append(target.getvalue())
    return files
