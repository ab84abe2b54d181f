"""Several PyTorch models behind one TorchServe endpoint.

The names in ``__all__`` are the public interface; everything else may change between releases. Each
name is imported when it is first used: torch takes seconds to import, and the command line must not
wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .archiver.build import build_archive
    from .ensemble import Ensemble
    from .handlers.base.errors import (
        ArchiveError,
        EnsembleError,
        MemberError,
        RequestError,
        ServerError,
        SpecError,
    )
    from .handlers.deployment import load_service
    from .handlers.service import EnsembleService
    from .handlers.spec import load_spec
    from .serving.client import InferenceClient, Prediction

__all__ = [
    "ArchiveError",
    "Ensemble",
    "EnsembleError",
    "EnsembleService",
    "InferenceClient",
    "MemberError",
    "Prediction",
    "RequestError",
    "ServerError",
    "SpecError",
    "build_archive",
    "load_service",
    "load_spec",
]
__version__ = "0.2.0"

_MODULES = {
    "Ensemble": ".ensemble",
    "EnsembleService": ".handlers.service",
    "InferenceClient": ".serving.client",
    "Prediction": ".serving.client",
    "build_archive": ".archiver.build",
    "load_service": ".handlers.deployment",
    "load_spec": ".handlers.spec",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES.get(name, ".handlers.base.errors"), __name__)
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
