"""The `preprocessing` sections of a spec: how an image file becomes a member's input."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..base.own_code import file_of
from .value_types import (
    UNKNOWN_KEYS_ARE_ERRORS,
    FiniteNumber,
    OwnFunctionName,
    PositiveNumber,
    SideInPixels,
)


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
class Window:
    """The values of a gray image of more than 8 bits that become black to white.

    Values between center - width / 2 and center + width / 2 become 0 to 1 without being rounded to
    8 bits; values outside become 0 or 1 (DICOM PS3.3, C.11.2.1.3.2, LINEAR_EXACT).
    """

    center: Annotated[
        FiniteNumber, Field(description="The value that becomes the middle between black and white")
    ]
    width: Annotated[
        PositiveNumber, Field(description="Difference of the values that become white and black")
    ]

    @property
    def low(self) -> float:
        """The value that becomes black."""
        return self.center - self.width / 2

    @property
    def high(self) -> float:
        """The value that becomes white."""
        return self.center + self.width / 2


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class Preprocessing:
    """How an image file becomes a member's input. The steps run in the order of these keys."""

    weights: Annotated[
        str | None,
        Field(
            description="Name of torchvision weights, e.g. ResNet18_Weights.DEFAULT, whose own "
            "transforms set the keys from `color` on; of these only resize_library may stand "
            "beside it"
        ),
    ] = None
    decode: Annotated[
        OwnFunctionName | None,
        Field(
            description="A function of your own, FILE.py:FUNCTION beside the spec, that decodes "
            "image files: DICOM, 16-bit colour, formats of your own. Needs `example`. It takes "
            "the bytes of one file and returns a PIL image, a tensor (channels, height, width) or "
            "a NumPy array (height, width, channels) with 1 or 3 channels: uint8, or floats from 0 "
            "to 1, or with `window` numbers of any kind. Left out: the server decodes. Pixels that "
            "a client sends as numbers are not decoded"
        ),
    ] = None
    example: Annotated[
        str | None,
        Field(
            description="A file that `decode` reads, beside the spec. It is decoded whenever the "
            "ensemble is built or loaded, so that a mistake shows before the first request, and "
            "the members are tried on it. The archive contains it"
        ),
    ] = None
    window: Annotated[
        Window | None,
        Field(
            description="Which values of gray images of more than 8 bits become black to white; "
            "8-bit images stay as they are. Left out: 16-bit images are scaled to 8 bits"
        ),
    ] = None
    scaled_jpeg: Annotated[
        bool,
        Field(
            description="Decode large JPEG files at a half, a quarter or an eighth of their size, "
            "but never below twice the size that `resize` asks for. A photograph of 12 million "
            "pixels takes two thirds of the time; scores change slightly"
        ),
    ] = False
    function: Annotated[
        OwnFunctionName | None,
        Field(
            description="A function of your own, FILE.py:FUNCTION beside the spec, instead of the "
            "keys from `color` on. It takes the pixels of one image, a uint8 tensor (3, height, "
            "width), or with `window` a float tensor from 0 to 1, or with `decode` what that "
            "returned, and returns the member's input, a float tensor of `shape`"
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
    normalize: Annotated[
        str | None,
        Field(
            description="Mean and std by name, instead of the two keys below: imagenet, or the "
            "name of torchvision weights, e.g. ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1"
        ),
    ] = None
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
    def files(self) -> dict[str, str]:
        """For each key that names a file, the file's path from the spec's folder."""
        own = {"decode": self.decode, "function": self.function}
        files = {key: file_of(text) for key, text in own.items() if text is not None}
        return {key: file for key, file in (*files.items(), ("example", self.example)) if file}

    @property
    def min_jpeg_size(self) -> tuple[int, int] | None:
        """Height and width below which no JPEG file is decoded; None: files keep their size."""
        if not self.scaled_jpeg or self.resize is None:
            return None
        height, width = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        return 2 * height, 2 * width

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
