"""From YAML to a checked spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ..base.errors import SpecError
from .checks import check
from .strict_yaml import MAX_CHARACTERS, parse_strictly
from .types import EnsembleSpec

_ADAPTER = TypeAdapter(EnsembleSpec)


def load_spec(path: Path, *, check_files: bool = True) -> EnsembleSpec:
    """Read and check an ensemble spec.

    Args:
        path: the YAML file.
        check_files: also check that every file that the spec names exists.

    Raises:
        SpecError: with one line for each mistake: file, line, key, what is wrong, the remedy.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; name the ensemble's YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    return parse_spec(text, source=str(path), folder=path.parent if check_files else None)


def parse_spec(text: str, *, source: str = "spec", folder: Path | None = None) -> EnsembleSpec:
    """As `load_spec`, from the text; with a folder, the files named must exist in it."""
    return parse_strictly(
        text, _ADAPTER, EnsembleSpec, source=source, check=lambda spec: check(spec, folder)
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the spec, for editors."""
    schema = _ADAPTER.json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "torchserve-ensemble spec"
    return schema
