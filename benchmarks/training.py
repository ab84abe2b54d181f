"""Weights without downloads: what is fitted here answers firmly, as trained members do.

Scores of untrained members lie so close together that a level of 255, which two correct resizers
may differ by, changes labels, and no comparison of answers would mean anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

_BATCH = 32
_DIRECTIONS = 60
_SHRINKAGE = 0.01
_SCALE = 0.1
_MARGIN = 5


def fit_last_layer(module: nn.Module, batch: Tensor, targets: Tensor) -> None:
    """Fit what can be fitted in seconds on a CPU: normalisation statistics and the last layer.

    Args:
        module: of torchvision, with random weights; it is changed, and left in evaluation mode.
        batch: float32 (N, 3, height, width).
        targets: int64 (N,).
    """
    module.eval()
    _set_normalization(module, batch[:_BATCH])
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    # Small changes of levels and place must not change the answer.
    noise = torch.Generator().manual_seed(0)
    gain = 1 + 0.03 * torch.randn((len(batch), 1, 1, 1), generator=noise)
    shift = 0.03 * torch.randn((len(batch), 3, 1, 1), generator=noise)
    jittered = (batch * gain + shift).roll((2, -2), (2, 3))
    features = _inputs_of(last, module, batch)
    # In bfloat16 too: what its rounding changes is then no part of the decision.
    with torch.autocast("cpu", torch.bfloat16):
        rounded = _inputs_of(last, module, jittered).float()
    features = torch.cat([features, rounded])
    weight, bias = _discriminant(features, torch.cat([targets, targets]))
    with torch.no_grad():
        last.weight.copy_(weight)
        last.bias.copy_(bias)


def _discriminant(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher's linear discriminant: directions that vary within a kind count little.

    So what differs between two correct resizers, or between two precisions, does not decide.
    Unlike descent it has one solution.
    """
    features = features.double()
    mean = features.mean(dim=0)
    directions = torch.linalg.svd(features - mean, full_matrices=False).Vh[:_DIRECTIONS]
    projected = (features - mean) @ directions.T
    kinds = sorted(set(targets.tolist()))
    centres = torch.stack([projected[targets == kind].mean(dim=0) for kind in kinds])
    within = projected - centres[targets]
    covariance = within.T @ within / (len(projected) - len(kinds))
    # Shrunk towards a multiple of the identity: there are few images for so many directions.
    level = covariance.diagonal().mean()
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * level * identity
    scaled = torch.linalg.solve(covariance, centres.T).T
    weight = scaled @ directions
    bias = -(scaled * centres).sum(dim=1) / 2 - weight @ mean
    # A temperature: scores of exactly one would be equal whatever a server computed.
    best = (features @ weight.T + bias).topk(2, dim=1).values
    temperature = (best[:, 0] - best[:, 1]).median() / _MARGIN
    return weight / temperature, bias / temperature


def fit(module: nn.Module, batch: Tensor, targets: Tensor) -> None:
    """Train a small module as a whole."""
    _descend(module.train(), batch, targets, steps=40, rate=0.01, decay=1e-3)
    module.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one core: two that wait for each other are far slower where others work too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _descend(
    module: nn.Module, batch: Tensor, targets: Tensor, *, steps: int, rate: float, decay: float
) -> None:
    """Full batches: no order of samples to choose, and the same weights each time."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(module(batch), targets, label_smoothing=0.01).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def _set_normalization(module: nn.Module, batch: Tensor) -> None:
    """Scale the outputs of every layer to the same mean square, from the first to the last.

    With no statistics a signal dies out on its way. With those that training takes, each untrained
    layer enlarges small differences (Yang et al. 2019, https://arxiv.org/abs/1902.08129), because
    it subtracts what all images have in common: after fifty layers rounding decides the label.
    """

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.zero_()
        layer.running_var.copy_(inputs[0].square().mean(dim=(0, 2, 3)))
        # Small inputs pass an activation such as SiLU almost in proportion, which enlarges little.
        layer.weight.fill_(_SCALE)

    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    handles = [layer.register_forward_pre_hook(measure) for layer in layers]
    # A layer's scale is set before its outputs reach the next one.
    module(batch)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def _inputs_of(layer: nn.Module, module: nn.Module, batch: Tensor) -> Tensor:
    with _recorded(layer) as found:
        for part in torch.split(batch, _BATCH):
            module(part)
    return torch.cat(found)


@contextmanager
def _recorded(layer: nn.Module) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])

    handle = layer.register_forward_pre_hook(record)
    try:
        yield found
    finally:
        handle.remove()
