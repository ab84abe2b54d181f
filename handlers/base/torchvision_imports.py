"""Imports torchvision without torch's compiler. The worker imports torchvision from here alone.

torchvision imports torch's compiler (torch._dynamo, and with it sympy and Triton) for two reasons:
one operator may call a function of it, and another function is marked as not to be compiled. The
compiler takes 170 MB in each worker, and a second of its start.
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
    """Replace the compiler by empty modules while the ``with`` block imports torchvision.

    Each function of the replacement imports the compiler when it is called.
    """
    if _COMPILER in sys.modules:
        yield
        return
    compiler, utilities = ModuleType(_COMPILER), ModuleType(_UTILITIES)

    def import_when_called(name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(_UTILITIES), name)(*arguments, **options)

        return call

    utilities.__getattr__ = import_when_called  # type: ignore[method-assign]
    compiler.utils = utilities  # type: ignore[attr-defined]
    compiler.disable = _return_unchanged  # type: ignore[attr-defined]
    replacements = {_COMPILER: compiler, _UTILITIES: utilities}
    sys.modules.update(replacements)
    try:
        yield
    finally:
        for name, replacement in replacements.items():
            if sys.modules.get(name) is replacement:
                del sys.modules[name]


def _return_unchanged(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
    """Return a function as it is, which is what ``torch.compiler.disable`` amounts to here.

    The worker compiles nothing.
    """
    return function


with _compiler_on_demand():
    from torchvision import models
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification
    from torchvision.transforms.v2 import functional

__all__ = [
    "ImageClassification",
    "InterpolationMode",
    "functional",
    "models",
]
