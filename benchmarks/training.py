"""Fits members in seconds and without downloads, so that servers can be compared by their labels.

The scores of untrained members lie close together. Two correct resizers may give pixels that differ
by one of 255 levels, and that would be enough to change the labels of untrained members.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

_BATCH_SIZE = 32

_NUM_DIRECTIONS = 60
"""Number of principal components of the features that the last layer uses."""

_SHRINKAGE = 0.01
"""Weight of the identity in the shrunk covariance."""

_NORMALISED_SCALE = 0.1
"""Root of the mean square of every layer's normalised output."""

_MEDIAN_LOGIT_MARGIN = 5
"""Median difference between the two largest logits, which keeps scores away from 0 and 1."""


def fit_last_layer(module: nn.Module, batch: Tensor, targets: Tensor) -> None:
    """Fit the normalisation statistics and the last layer, which takes seconds on a CPU.

    Args:
        module: a torchvision module with random weights; it is changed, and left in evaluation
            mode.
        batch: images (N, 3, height, width) float32.
        targets: kinds of the images (N,) int64.
    """
    module.eval()
    _set_normalization(module, batch[:_BATCH_SIZE])
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    # Small changes of brightness and position must not change the label.
    noise = torch.Generator().manual_seed(0)
    gain = 1 + 0.03 * torch.randn((len(batch), 1, 1, 1), generator=noise)
    shift = 0.03 * torch.randn((len(batch), 3, 1, 1), generator=noise)
    jittered = (batch * gain + shift).roll((2, -2), (2, 3))
    features = _inputs_of(last, module, batch)
    # With features in bfloat16 among them, the fit does not rely on what their rounding changes.
    with torch.autocast("cpu", torch.bfloat16):
        rounded = _inputs_of(last, module, jittered).float()
    features = torch.cat([features, rounded])
    weight, bias = _discriminant(features, torch.cat([targets, targets]))
    with torch.no_grad():
        last.weight.copy_(weight)
        last.bias.copy_(bias)


def _discriminant(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Fisher's linear discriminant for the kinds of images.

    Directions in which images of one kind differ count little in it. Differences between two
    correct resizers, or between two precisions, therefore hardly change a score. Unlike gradient
    descent the discriminant has a single solution.

    Args:
        features: (N, features) float32.
        targets: kinds of the images (N,) int64.

    Returns:
        Weight (kinds, features) and bias (kinds,) of a linear layer, in float64.
    """
    features = features.double()
    mean = features.mean(dim=0)
    directions = torch.linalg.svd(features - mean, full_matrices=False).Vh[:_NUM_DIRECTIONS]
    projected = (features - mean) @ directions.T
    kinds = sorted(set(targets.tolist()))
    centres = torch.stack([projected[targets == kind].mean(dim=0) for kind in kinds])
    within = projected - centres[targets]
    covariance = within.T @ within / (len(projected) - len(kinds))
    # There are few images for so many directions, so the covariance is shrunk towards a multiple of
    # the identity.
    level = covariance.diagonal().mean()
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * level * identity
    scaled = torch.linalg.solve(covariance, centres.T).T
    weight = scaled @ directions
    bias = -(scaled * centres).sum(dim=1) / 2 - weight @ mean
    # Without a temperature many scores would be exactly 1, and would not show that servers differ.
    best = (features @ weight.T + bias).topk(2, dim=1).values
    temperature = (best[:, 0] - best[:, 1]).median() / _MEDIAN_LOGIT_MARGIN
    return weight / temperature, bias / temperature


def fit(module: nn.Module, batch: Tensor, targets: Tensor) -> None:
    """Train all layers of a small module, and leave it in evaluation mode."""
    _descend(module.train(), batch, targets, steps=40, rate=0.01, decay=1e-3)
    module.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread while the context lasts.

    Threads that wait for each other are far slower if other programs use the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _descend(
    module: nn.Module, batch: Tensor, targets: Tensor, *, steps: int, rate: float, decay: float
) -> None:
    """Run gradient descent on the whole batch, so that no order of samples changes the weights."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(module(batch), targets, label_smoothing=0.01).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def _set_normalization(module: nn.Module, batch: Tensor) -> None:
    """Scale the outputs of every layer to the same mean square, from the first layer to the last.

    Without statistics the signal becomes ever smaller from layer to layer. With the statistics that
    training uses, each layer also subtracts the mean over all images. In untrained layers that
    enlarges small differences (Yang et al. 2019, https://arxiv.org/abs/1902.08129): after fifty
    layers rounding decides the label.
    """

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.zero_()
        layer.running_var.copy_(inputs[0].square().mean(dim=(0, 2, 3)))
        # Activations such as SiLU are almost linear for small inputs, and then hardly enlarge
        # differences.
        layer.weight.fill_(_NORMALISED_SCALE)

    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    handles = [layer.register_forward_pre_hook(measure) for layer in layers]
    # A layer's scale is set before its outputs reach the next one.
    module(batch)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def _inputs_of(layer: nn.Module, module: nn.Module, batch: Tensor) -> Tensor:
    """Compute the inputs (N, features) that a layer gets when the module runs on a batch."""
    with _recorded(layer) as inputs:
        for part in torch.split(batch, _BATCH_SIZE):
            module(part)
    return torch.cat(inputs)


@contextmanager
def _recorded(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the inputs of a layer, one tensor for each call, while the context lasts."""
    recorded: list[Tensor] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        recorded.append(inputs[0])

    handle = layer.register_forward_pre_hook(record)
    try:
        yield recorded
    finally:
        handle.remove()
