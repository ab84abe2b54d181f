"""Helpers for tests of the service: an ensemble whose answers can be foreseen, and requests to it.

Its members, called probes, measure the brightness of an image.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from torchserve_ensemble.handlers.answers.encoding import Response
from torchserve_ensemble.handlers.deployment import load_service
from torchserve_ensemble.handlers.requests.raw_request import Part, RawRequest
from torchserve_ensemble.handlers.service import EnsembleService
from torchserve_ensemble.handlers.spec import parse_spec

CODE = """
import torch
from torch import nn


class Probe(nn.Module):
    def __init__(self, task, raises_above=2.0, nan_below=-1.0):
        super().__init__()
        self.bound = nn.Parameter(torch.zeros(()))
        self.task, self.raises_above, self.nan_below = task, raises_above, nan_below

    def forward(self, batch):
        brightness = batch.mean(dim=(1, 2, 3))
        if bool((brightness > self.raises_above).any()):
            raise RuntimeError("too bright")
        logit = 10 * (brightness - self.bound)
        logit = torch.where(brightness < self.nan_below, torch.nan, logit)
        if self.task == "classification":
            return torch.stack([-logit / 2, logit / 2], dim=1)
        if self.task == "multilabel":
            return torch.stack([logit, -logit], dim=1)
        return logit.unsqueeze(1)
"""

LABELS = {
    "classification": ["dark", "bright"],
    "presence": ["dark", "bright"],
    "multilabel": ["bright", "dark"],
    "regression": ["brightness"],
}


def probes(
    folder: Path,
    *,
    task: str = "classification",
    bounds: tuple[float, ...] = (0.25, 0.5, 0.75),
    arguments: dict[str, dict[str, Any]] | None = None,
    **settings: Any,
) -> EnsembleService:
    """Write and load an ensemble of the members a, b, c ...

    Each member answers "bright" for images that are at least as bright as its bound.

    Args:
        folder: folder for the files.
        task: the task of the spec.
        bounds: brightness, from 0 to 1, from which on each member answers "bright".
        arguments: name of a member -> further arguments of its probe.
        settings: further keys of the spec.
    """
    (folder / "probe.py").write_text(CODE)
    members = []
    for name, bound in zip("abcdefgh", bounds, strict=False):
        save_file({"bound": torch.tensor(bound)}, folder / f"{name}.safetensors")
        members.append(
            {
                "name": name,
                "architecture": "probe.py:Probe",
                "arguments": {"task": task} | (arguments or {}).get(name, {}),
                "weights": f"{name}.safetensors",
            }
        )
    spec = {
        "name": "probes",
        "version": "1.0",
        "task": task,
        "labels": LABELS[task],
        "preprocessing": {"small": {"resize": [2, 2]}},
        "members": members,
        **settings,
        # A probe branches on values, which no other engine can.
        "runtime": {"engine": "torch"} | settings.get("runtime", {}),
    }
    text = json.dumps(spec)
    (folder / "ensemble.yaml").write_text(text)
    return load_service(parse_spec(text, folder=folder), folder)


def image(brightness: float) -> bytes:
    """Make a gray PNG file of a brightness from 0 to 1."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (round(255 * brightness),) * 3).save(file, "PNG")
    return file.getvalue()


def form(*images: bytes, headers: dict[str, str] | None = None, **options: str) -> RawRequest:
    """Make a request that is a form with images and options."""
    parts = [Part("file", "image/png", each) for each in images]
    parts += [Part(name, "", value.encode()) for name, value in options.items()]
    return RawRequest(parts, headers or {})


def ask(service: EnsembleService, *images: bytes, **options: str) -> dict[str, Any]:
    """Send a form to a service, and return the answer, whose status must be 200."""
    (response,) = service.answer([form(*images, **options)])
    assert response.status == 200, response.body
    content: dict[str, Any] = json.loads(response.body)
    return content


def refusal(service: EnsembleService, *images: bytes, **options: str) -> dict[str, Any]:
    """Send a form that the service must refuse, and return the refusal."""
    (response,) = service.answer([form(*images, **options)])
    assert response.status >= 400, response.body
    return read(response)


def read(response: Response) -> dict[str, Any]:
    """Parse the JSON of a response; NaN and infinity in it are errors."""

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    content: dict[str, Any] = json.loads(response.body, parse_constant=no_constant)
    return content
