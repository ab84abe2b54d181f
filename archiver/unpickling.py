"""Unpickles a checkpoint without running anything of it: what is no tensor becomes a `Stub`.

A pickle is a program that calls functions by their names. This module gives it those names only
which `torch.load(weights_only=True)` allows, and NumPy's constructors of arrays. For any other name
the pickle gets a class of its own, a `Stub`, which keeps what it is given and does nothing. So the
classes of a checkpoint need not be installed, and `os.system` in a pickle makes a harmless object.

It runs in a confined process all the same (`sandbox`): this wall is written in Python, on top of an
unpickler and a tensor library in C, and any of them may have a defect.
"""

from __future__ import annotations

import pickle
from functools import cache
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import torch


def unpickle(source: BinaryIO) -> tuple[object, list[str]]:
    """Unpickle a file that `torch.save` wrote.

    Returns:
        The object, on the CPU, and the names of the functions and classes that the pickle asked for
        and got a `Stub` in place of.
    """
    asked_for: dict[str, type[Stub]] = {}
    root = torch.load(
        source,
        map_location="cpu",
        weights_only=False,
        pickle_module=_pickle_module(asked_for),
    )
    return root, [*asked_for]


class Stub:
    """Stands for an object whose class or function is not allowed: keeps its parts, runs nothing.

    Attributes:
        origin: the name that the pickle asked for, such as ``os.system``.
        arguments: what it was called with.
        items: what the pickle set by key, if the object is a kind of dict.
        members: what the pickle appended, if the object is a kind of list or set.
        attributes: the object's attributes by name.
    """

    origin = ""

    def __new__(cls, *arguments: object, **_: object) -> Stub:
        """Make an object that remembers its arguments."""
        made = super().__new__(cls)
        made.arguments = arguments
        made.items = {}
        made.members = []
        made.attributes = {}
        return made

    def __init__(self, *_: object, **__: object) -> None:
        self.arguments: tuple[object, ...]
        self.items: dict[object, object]
        self.members: list[object]
        self.attributes: dict[str, object]

    def __call__(self, *_: object, **__: object) -> Stub:
        """Return itself, in case the pickle calls an object that a call gave."""
        return self

    def __setstate__(self, state: object) -> None:
        """Take an object's attributes; with slots they come as two dicts."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.attributes.update({str(name): value for name, value in part.items()})

    def __setitem__(self, key: object, value: object) -> None:
        """Keep an entry."""
        self.items[key] = value

    def append(self, member: object) -> None:
        """Keep a member."""
        self.members.append(member)

    add = append


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows `_allowed_names` and makes a `Stub` of every other name."""

    asked_for: dict[str, type[Stub]]

    def find_class(self, module: str, name: str) -> Any:
        """Return what the pickle asks for by module and name."""
        # Checkpoints have Python 2's name of this module.
        origin = f"{module.replace('__builtin__', 'builtins')}.{name}"
        allowed = _allowed_names()
        if origin in allowed:
            return allowed[origin]
        return self.asked_for.setdefault(origin, type(name, (Stub,), {"origin": origin}))


@cache
def _allowed_names() -> dict[str, Any]:
    """Return the functions and classes that a pickle may use, by name."""
    from torch._weights_only_unpickler import _get_allowed_globals

    allowed: dict[str, Any] = dict(_get_allowed_globals())
    reconstruct, scalar = (value.__reduce__()[0] for value in (np.zeros(0), np.float64(0)))
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed[f"{module}._reconstruct"] = reconstruct
        allowed[f"{module}.scalar"] = scalar
    allowed |= {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    # A tensor of a class that is not known stays a tensor.
    allowed["torch._tensor._rebuild_from_type_v2"] = _as_plain_tensor
    return allowed


def _as_plain_tensor(
    function: Any, _: object, arguments: tuple[object, ...], state: object
) -> object:
    return function(*arguments)


def _pickle_module(asked_for: dict[str, type[Stub]]) -> Any:
    """Return what `torch.load` takes for the module pickle."""
    of_this_file = type("OfThisFile", (_Unpickler,), {"asked_for": asked_for})
    return SimpleNamespace(
        __name__="pickle",
        Unpickler=of_this_file,
        load=lambda file, **options: of_this_file(file, **options).load(),
    )
