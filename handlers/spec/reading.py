"""Reads ensemble.yaml into a checked `EnsembleSpec`, and publishes its JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ..base.errors import EnsembleError, SpecError
from .checks import check_spec
from .ensemble import EnsembleSpec
from .labels_file import LABELS_FOLDER
from .strict_yaml import MAX_CHARACTERS, located, parse_strictly

_SPEC_ADAPTER = TypeAdapter(EnsembleSpec)


def load_spec(path: Path, *, check_files: bool = True) -> EnsembleSpec:
    """Read and check the ensemble spec in a YAML file.

    Args:
        path: the YAML file.
        check_files: whether to check also that every file named in the spec exists.

    Raises:
        SpecError: the message has one line for each mistake, with the file, the line, the key,
            what is wrong and the remedy.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; name the ensemble's YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    return parse_spec(
        text,
        source=str(path),
        folder=path.parent if check_files else None,
        labels_folder=path.parent,
    )


@contextmanager
def located_errors(path: Path) -> Iterator[None]:
    """Name the file, the line and the key in errors about values of a spec.

    Some values turn out to be wrong only when members are loaded or policies are parsed. Such
    errors know the value's place in the spec, but not the file that the spec was read from.

    Args:
        path: the YAML file that the spec was read from.
    """
    try:
        yield
    except EnsembleError as error:
        if not error.place:
            raise
        text = path.read_text(encoding="utf-8")
        error_with_line = type(error)(located(error.message, error.place, text, str(path)))
        raise error_with_line from error


def parse_spec(
    text: str,
    *,
    source: str = "spec",
    folder: Path | None = None,
    labels_folder: Path | None = None,
) -> EnsembleSpec:
    """Parse and check the text of an ensemble spec.

    Args:
        text: the YAML document.
        source: where the text comes from, for messages.
        folder: the folder in which every file named in the spec must exist; None to leave that
            unchecked.
        labels_folder: the folder in which a file named as `labels` lies; left out: `folder`.

    Raises:
        SpecError: the message has one line for each mistake.
    """
    return parse_strictly(
        text,
        _SPEC_ADAPTER,
        EnsembleSpec,
        source=source,
        check=lambda spec: check_spec(spec, folder),
        context={LABELS_FOLDER: labels_folder or folder},
    )


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the spec, with which editors complete and check ensemble.yaml."""
    schema = _SPEC_ADAPTER.json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "torchserve-ensemble spec"
    return schema
