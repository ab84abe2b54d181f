"""From outputs to a body."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from .types import BYTES, DTYPES, OutputTensor


def encode_infer_response(
    *,
    model_name: str,
    model_version: str,
    id: str | None,
    parameters: Mapping[str, Any],
    outputs: Iterable[OutputTensor],
) -> tuple[bytes, int | None]:
    """Write a response.

    Returns:
        The body, and the length of its JSON if binary data follow it.
    """
    content: dict[str, Any] = {"model_name": model_name, "model_version": model_version}
    if id is not None:
        content["id"] = id
    content["parameters"] = dict(parameters)
    sections = []
    content["outputs"] = written = []
    for output in outputs:
        entry: dict[str, Any] = {
            "name": output.name,
            "shape": list(output.shape),
            "datatype": output.datatype,
        }
        if output.binary:
            section = _to_binary(output)
            sections.append(section)
            entry["parameters"] = {"binary_data_size": len(section)}
        else:
            entry["data"] = _to_json(output)
        written.append(entry)
    header = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    encoded = header.encode("utf-8")
    return (encoded + b"".join(sections), len(encoded)) if sections else (encoded, None)


def _to_binary(output: OutputTensor) -> bytes:
    if output.datatype == BYTES:
        values = output.data.reshape(-1).tolist()
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return output.data.astype(DTYPES[output.datatype]).tobytes()


def _to_json(output: OutputTensor) -> list[Any]:
    """Flat, row by row; floats as the shortest decimals that read back alike, null if not finite.

    float32 goes through its text because the decimals of the same number as float64 are longer.
    """
    flat = output.data.reshape(-1)
    if output.datatype == BYTES:
        return [value.decode("utf-8", errors="replace") for value in flat.tolist()]
    if flat.dtype.kind != "f":
        return list(flat.tolist())
    texts = flat.astype(DTYPES[output.datatype]).astype(str).tolist()
    return [float(text) if text not in ("nan", "inf", "-inf") else None for text in texts]
