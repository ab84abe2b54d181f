"""torchvision, without torch's compiler: every import of torchvision in the worker is here.

Importing torchvision imports torch's compiler (torch._dynamo, and with it sympy and Triton): for a
function that one operator may call, and to tell it to leave another function alone. That is 170 MB
in each worker, and a second of its start.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_UTILITIES = "torch._dynamo.utils"


@contextmanager
def _compiler_on_demand() -> Iterator[None]:
    """Imports within get stand-ins, whose functions import the compiler when they are called."""
    if _COMPILER in sys.modules:
        yield
        return
    compiler, utilities = ModuleType(_COMPILER), ModuleType(_UTILITIES)

    def on_demand(name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(_UTILITIES), name)(*arguments, **options)

        return call

    utilities.__getattr__ = on_demand  # type: ignore[method-assign]
    compiler.utils = utilities  # type: ignore[attr-defined]
    compiler.disable = _as_it_is  # type: ignore[attr-defined]
    stand_ins = {_COMPILER: compiler, _UTILITIES: utilities}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


def _as_it_is(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
    """What ``torch.compiler.disable`` comes to where nothing is compiled."""
    return function


with _compiler_on_demand():
    from torchvision import models
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification
    from torchvision.transforms.v2 import functional

__all__ = [
    "ImageClassification",
    "ImageReadMode",
    "InterpolationMode",
    "decode_jpeg",
    "functional",
    "models",
]
