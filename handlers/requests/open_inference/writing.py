"""Writes an answer: JSON, which binary tensor data may follow."""

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
    """Encode an answer.

    Args:
        model_name: name of the model.
        model_version: version of the model.
        id: identifier of the request; None if it had none.
        parameters: parameters of the answer.
        outputs: the output tensors, in order.

    Returns:
        The body, and the number of bytes of its JSON; None if no binary data follow the JSON.
    """
    content: dict[str, Any] = {"model_name": model_name, "model_version": model_version}
    if id is not None:
        content["id"] = id
    content["parameters"] = dict(parameters)
    sections = []
    content["outputs"] = entries = []
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
        entries.append(entry)
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    encoded = text.encode("utf-8")
    return (encoded + b"".join(sections), len(encoded)) if sections else (encoded, None)


def _to_binary(output: OutputTensor) -> bytes:
    """Encode the elements as little-endian numbers, or as BYTES that follow their lengths."""
    if output.datatype == BYTES:
        values = output.data.reshape(-1).tolist()
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return output.data.astype(DTYPES[output.datatype]).tobytes()


def _to_json(output: OutputTensor) -> list[Any]:
    """Make a flat list of the elements, row by row.

    A float becomes the shortest decimal that reads back as the same number of its dtype; NaN and
    infinity become None. Converting a float32 to Python's float64 would give a longer decimal, so
    it goes through its text.
    """
    flat = output.data.reshape(-1)
    if output.datatype == BYTES:
        return [value.decode("utf-8", errors="replace") for value in flat.tolist()]
    if flat.dtype.kind != "f":
        return list(flat.tolist())
    texts = flat.astype(DTYPES[output.datatype]).astype(str).tolist()
    return [float(text) if text not in ("nan", "inf", "-inf") else None for text in texts]
