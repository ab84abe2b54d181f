"""Makes a service that is ready to answer, from a spec and the files beside it.

Everything that depends on the machine is decided here: the device, the number of threads of this
worker, and settings of the process.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from .archive.self_test import SelfTest
from .base.archive_layout import SELF_TEST
from .base.errors import MemberError, PolicyError, SpecError
from .base.memory import keep_activations
from .base.threads import ThreadPool
from .engine.runtime import Runtime
from .policies import Catalogue, check_catalogue, load_fitted, parse_policy
from .rollout.canary import Canary
from .rollout.shadow import Shadow
from .service import EnsembleService, Identity
from .spec import EnsembleSpec, RolloutMode

_MAX_ONEDNN_KERNELS = 16_384
"""Number of kernels that oneDNN caches: one for each layer and batch size.

Its default of 1,024 is too small for several members; kernels would then be built again whenever
the batch size changes.
"""


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
        folder: the folder with the files that the spec names.
        identity: name and version of the model in answers; defaults to those of the spec.
        device: the device that runs the members; defaults to the one that the spec asks for.
        workers: number of workers that share the cores of this machine.
        compiled: whether to run the compiled executables in the folder. They can be machine code,
            so this is safe only for an archive whose files were checked against its record.

    Raises:
        SpecError: a policy or preprocessing does not exist.
        MemberError: a member cannot be loaded, or the spec asks for a GPU and there is none.
        ArchiveError: the record of compiled executables is damaged.
    """
    # oneDNN reads this variable when it builds its first kernel, so it is set before members run.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_MAX_ONEDNN_KERNELS))
    threads = spec.runtime.threads or max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(threads)
    pool = ThreadPool(threads)
    policies = catalogue(spec, folder)
    identity = identity or Identity(spec.name, spec.version)
    canary, shadow = _candidate(spec, folder, policies, identity)
    if shadow is not None:
        # The new members run in a process of their own.
        spec = spec.only(spec.current_members)
    device = device or choose_device(spec, gpu=None)
    runtime = Runtime.load(spec, folder, device, pool, compiled=compiled)
    # This comes after loading: memory that only loading needs still returns to the system.
    keep_activations()
    # Only an archive whose files were checked has a digest, and a self-test that can be trusted.
    self_test = None if identity.archive is None else _self_test(folder)
    return EnsembleService(
        spec, runtime, identity, policies, pool, self_test, canary=canary, shadow=shadow
    )


def _candidate(
    spec: EnsembleSpec, folder: Path, policies: Catalogue, identity: Identity
) -> tuple[Canary | None, Shadow | None]:
    """Make what the candidate needs, if the spec has one.

    Raises:
        SpecError: the policy of the candidate does not exist or does not fit its members.
    """
    if spec.rollout is None:
        return None, None
    of_candidate = catalogue(spec, folder, candidate=True)
    if spec.rollout.mode is RolloutMode.CANARY:
        return Canary.of_spec(spec, policies, of_candidate, identity.as_json()), None
    return None, Shadow(spec, of_candidate)


def _self_test(folder: Path) -> SelfTest | None:
    """Read the self-test beside a spec; None if the archive was built without one."""
    path = folder / Path(SELF_TEST).name
    return SelfTest.from_text(path.read_bytes(), source=str(path)) if path.is_file() else None


def catalogue(
    spec: EnsembleSpec, folder: Path | None = None, *, candidate: bool = False
) -> Catalogue:
    """Make the catalogue of a deployment's policies, and check each of them.

    Args:
        spec: the ensemble.
        folder: the folder with the files of the fitted models; None loads no fitted models.
        candidate: whether the members and the default policy are those of the candidate.

    Raises:
        SpecError: a policy of the spec does not exist or has a wrong parameter, or a fitted model
            cannot be read.
    """
    files = spec.policies.fitted if folder is not None else {}
    positions = spec.candidate_members if candidate else spec.current_members
    try:
        policies = Catalogue(
            task=spec.task,
            member_names=tuple(spec.members[position].name for position in positions),
            named=dict(spec.policies.named),
            allowed=None if spec.policies.allowed is None else frozenset(spec.policies.allowed),
            default=spec.policies.default,
            fitted={name: load_fitted(Path(folder or "") / file) for name, file in files.items()},
        )
        if candidate:
            policies = _with_candidate_policy(policies, spec)
        else:
            check_catalogue(policies)
    except PolicyError as error:
        spec_error = SpecError(f"policies of ensemble '{spec.name}': {error}")
        spec_error.place = error.place
        raise spec_error from error
    return policies


def _with_candidate_policy(policies: Catalogue, spec: EnsembleSpec) -> Catalogue:
    """Make the policy of the candidate the default one, and check it.

    Raises:
        PolicyError: the policy does not exist, or does not work with the candidate's members.
    """
    own = None if spec.rollout is None else spec.rollout.policy
    policies = replace(policies, default=own or policies.default)
    try:
        parse_policy(policies.default, {}, policies)
    except PolicyError as error:
        error.place = ("rollout", "policy") if own else ("rollout",)
        raise
    return policies


def choose_device(spec: EnsembleSpec, gpu: int | None) -> torch.device:
    """Choose the device that the spec asks for.

    Args:
        spec: the ensemble.
        gpu: number of the GPU that TorchServe assigned to this worker, if it assigned one.

    Raises:
        MemberError: the spec asks for a GPU and torch finds none.
    """
    requested = spec.runtime.device
    available = torch.cuda.is_available()
    if requested == "cuda" and not available:
        raise MemberError(
            f"ensemble '{spec.name}' asks for a GPU (runtime.device: cuda) and this machine has "
            "none that torch can use; set device: auto to run on the CPU"
        )
    if requested == "cpu" or not available:
        return torch.device("cpu")
    return torch.device(f"cuda:{gpu or 0}")
