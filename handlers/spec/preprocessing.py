"""The `preprocessing` sections of a spec: how a decoded image becomes a member's input."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from .value_types import UNKNOWN_KEYS_ARE_ERRORS, FiniteNumber, PositiveNumber, SideInPixels


class Color(StrEnum):
    """The colour channels of a member's input."""

    RGB = "rgb"
    GRAYSCALE = "grayscale"


class Interpolation(StrEnum):
    """How new pixels are computed when an image is resized, under torchvision's names."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class ResizeLibrary(StrEnum):
    """The library whose arithmetic resizes an image."""

    TORCH = "torch"
    PILLOW = "pillow"


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class Preprocessing:
    """How a decoded image becomes a member's input. The steps run in the order of these keys."""

    weights: Annotated[
        str | None,
        Field(
            description="Name of torchvision weights, e.g. ResNet18_Weights.DEFAULT, whose own "
            "transforms set all the other keys; no key but resize_library may stand beside it"
        ),
    ] = None
    function: Annotated[
        str | None,
        Field(
            pattern=r"^[^:]+\.py:[A-Za-z_][A-Za-z_0-9]*$",
            description="A function of your own, FILE.py:FUNCTION beside the spec, instead of all "
            "keys but shape. It takes the pixels of one image, a uint8 tensor (3, height, width), "
            "and returns the member's input, a float tensor of `shape`",
        ),
    ] = None
    shape: Annotated[
        tuple[SideInPixels, SideInPixels, SideInPixels] | None,
        Field(description="Channels, height and width of what `function` returns"),
    ] = None
    color: Annotated[
        Color, Field(description="The input has three channels (rgb) or one (grayscale)")
    ] = Color.RGB
    resize: Annotated[
        SideInPixels | tuple[SideInPixels, SideInPixels] | None,
        Field(
            description="Pixels of the shorter side, keeping the proportions, or [height, width]; "
            "left out: the image is not resized"
        ),
    ] = None
    letterbox: Annotated[
        int | None,
        Field(
            ge=0,
            le=255,
            description="With resize [height, width]: the image keeps its proportions, lies in the "
            "middle, and the rest has this level (0 is black; YOLO trains with 114); left out: the "
            "image is stretched",
        ),
    ] = None
    crop: Annotated[
        SideInPixels | tuple[SideInPixels, SideInPixels] | None,
        Field(
            description="The middle of the image is kept: pixels of a square's side, or "
            "[height, width]; left out: the image is not cropped"
        ),
    ] = None
    interpolation: Annotated[
        Interpolation, Field(description="How `resize` computes the new pixels")
    ] = Interpolation.BILINEAR
    antialias: Annotated[
        bool,
        Field(description="`resize` filters out details too fine for the new size, as Pillow does"),
    ] = True
    resize_library: Annotated[
        ResizeLibrary,
        Field(
            description="torch: as torchvision resizes tensors. pillow: as torchvision resizes PIL "
            "images, which most training code loads. Pixels differ by at most 1 of 255"
        ),
    ] = ResizeLibrary.TORCH
    value_range: Annotated[
        tuple[FiniteNumber, FiniteNumber],
        Field(description="The numbers that black (0) and white (255) become"),
    ] = (0.0, 1.0)
    mean: Annotated[
        tuple[FiniteNumber, ...] | None,
        Field(
            description="Subtracted after `value_range`: one number for each channel, or one for "
            "all; left out: 0"
        ),
    ] = None
    std: Annotated[
        tuple[PositiveNumber, ...] | None,
        Field(
            description="Divides after `mean` was subtracted: one number for each channel, or one "
            "for all; left out: 1"
        ),
    ] = None

    @property
    def channels(self) -> int:
        """Number of channels of the member's input: 1 for grayscale, 3 for RGB, or of `shape`."""
        if self.shape is not None:
            return self.shape[0]
        return 1 if self.color is Color.GRAYSCALE else 3

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the member's input in pixels; None if they depend on the image."""
        if self.shape is not None:
            return self.shape[1:]
        if self.crop is not None:
            return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        return self.resize if isinstance(self.resize, tuple) else None
