"""The Open Inference Protocol v2 over REST, with its binary tensor data extension.

Specification: https://github.com/kserve/open-inference-protocol (inference REST) and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md.

This package converts between bytes and arrays, and knows nothing of ensembles. `reading` parses
requests, `tensor_data` decodes the elements of their tensors, and `writing` encodes answers.
"""

from .reading import parse_infer_request
from .types import InferRequest, InputTensor, OutputTensor, RequestedOutput
from .writing import encode_infer_response

__all__ = [
    "InferRequest",
    "InputTensor",
    "OutputTensor",
    "RequestedOutput",
    "encode_infer_response",
    "parse_infer_request",
]
