"""From a spec and the files beside it to a service that is ready to answer.

Everything that depends on the machine is decided here: the device, how many threads this worker
uses, and settings of the process.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .base.errors import MemberError, PolicyError, SpecError
from .base.memory import keep_activations
from .base.threads import ThreadPool
from .engine.runtime import Runtime
from .policies import Catalogue, check_catalogue, load_fitted
from .service import EnsembleService, Identity
from .spec import EnsembleSpec

_ONEDNN_CACHED_KERNELS = 16_384
"""oneDNN keeps one kernel for each layer and batch size. Its default of 1,024 is too small for
several members: kernels would be built anew whenever the batch size changes."""


def load_service(
    spec: EnsembleSpec,
    folder: Path,
    *,
    identity: Identity | None = None,
    device: torch.device | None = None,
    workers: int = 1,
    compiled: bool = False,
) -> EnsembleService:
    """Load all members of an ensemble and return the service that answers with them.

    Args:
        spec: the ensemble.
        folder: where the files that the spec names are.
        identity: what answers call the model; defaults to the spec's name and version.
        device: where the members run; defaults to what the spec asks for.
        workers: how many workers share the cores of this machine.
        compiled: run compiled members that lie beside the spec. Only for an archive whose record
            was checked, since they are machine code.

    Raises:
        SpecError: a policy or preprocessing does not exist.
        MemberError: a member cannot be loaded.
    """
    # Read by oneDNN when it builds its first kernel, so it must be set before members run.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_ONEDNN_CACHED_KERNELS))
    threads = spec.runtime.threads or max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(threads)
    pool = ThreadPool(threads)
    offered = catalogue(spec, folder)
    device = device or choose_device(spec, gpu=None)
    runtime = Runtime.load(spec, folder, device, pool, compiled=compiled)
    # After loading, so that memory which only loading needs still goes back to the system.
    keep_activations()
    return EnsembleService(
        spec, runtime, identity or Identity(spec.name, spec.version), offered, pool
    )


def catalogue(spec: EnsembleSpec, folder: Path | None = None) -> Catalogue:
    """The policies of a deployment, each checked.

    Args:
        spec: the ensemble.
        folder: where the files of its fitted models are; None: it has none.

    Raises:
        SpecError: a policy of the spec does not exist or has a wrong parameter, or a fitted model
            cannot be read.
    """
    files = spec.policies.fitted if folder is not None else {}
    try:
        result = Catalogue(
            task=spec.task,
            member_names=tuple(member.name for member in spec.members),
            named=dict(spec.policies.named),
            allowed=None if spec.policies.allowed is None else frozenset(spec.policies.allowed),
            default=spec.policies.default,
            fitted={name: load_fitted(Path(folder or "") / file) for name, file in files.items()},
        )
        check_catalogue(result)
    except PolicyError as error:
        raise SpecError(f"policies of ensemble '{spec.name}': {error}") from error
    return result


def choose_device(spec: EnsembleSpec, gpu: int | None) -> torch.device:
    """The device that the spec asks for.

    Args:
        spec: the ensemble.
        gpu: the GPU that TorchServe assigned to this worker, if it did.

    Raises:
        MemberError: the spec asks for a GPU and there is none.
    """
    wanted = spec.runtime.device
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise MemberError(
            f"ensemble '{spec.name}' asks for a GPU (runtime.device: cuda) and this machine has "
            "none that torch can use; set device: auto to run on the CPU"
        )
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    return torch.device(f"cuda:{gpu or 0}")
