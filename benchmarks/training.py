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
    mean, std = features.mean(dim=0), features.std(dim=0) + 0.05 * features.std()
    layer = nn.Linear(last.in_features, last.out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    _descend(layer, (features - mean) / std, torch.cat([targets, targets]), steps=300, decay=3.0)
    with torch.no_grad():
        # The standardisation becomes part of the layer.
        last.weight.copy_(layer.weight / std)
        last.bias.copy_(layer.bias - (layer.weight / std) @ mean)


def fit(module: nn.Module, batch: Tensor, targets: Tensor) -> None:
    """Train a small module as a whole."""
    _descend(module.train(), batch, targets, steps=40, decay=1e-3)
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
    module: nn.Module, batch: Tensor, targets: Tensor, *, steps: int, decay: float
) -> None:
    """Full batches: no order of samples to choose, and the same weights each time."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(module(batch), targets, label_smoothing=0.01).backward()
        optimizer.step()


@torch.no_grad()
def _set_normalization(module: nn.Module, batch: Tensor) -> None:
    """Scale every layer's outputs to a mean square of one, from the first layer to the last.

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

    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    handles = [layer.register_forward_pre_hook(measure) for layer in layers]
    # A layer's scale is set before its outputs reach the next one.
    module(batch)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def _inputs_of(layer: nn.Module, module: nn.Module, batch: Tensor) -> Tensor:
    with _recorded(layer) as found:
        for part in batch.split(_BATCH):
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
