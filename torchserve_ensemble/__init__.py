"""Several PyTorch models behind one TorchServe endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ensemble import Ensemble

__all__ = ["Ensemble"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: torch takes seconds, which the command line need not wait for.
    if name == "Ensemble":
        from .ensemble import Ensemble

        return Ensemble
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
