"""Step: short memory, deadlines and lazy policies work as on the CPU."""

from __future__ import annotations

import json
import time
from typing import Any

import torch

from torchserve_ensemble.handlers.deployment import load_service
from torchserve_ensemble.handlers.engine.member_scores import State
from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.requests.raw_request import Part, RawRequest
from torchserve_ensemble.handlers.service import EnsembleService

from .ensembles import (
    TOLERANCE,
    WIDTH_OF_LARGE,
    image_files,
    inputs,
    logged,
    network_of,
    require_right,
    right_scores,
    save_member,
    write_spec,
)
from .rows import Skipped, Step

_SLOW_SECONDS = 0.4
_DEADLINE_SECONDS = 0.3
"""A fast member ends long before, and a slow one after."""

_POLICIES = ("any", "all", "majority", "at_least(k=2)", "cascade(confidence=0.8)")


def check(step: Step) -> None:
    """Check each of them in a row of its own."""
    with step.row("out of memory, raised by the member") as row:
        row.detail = _check_raised(step)
    with step.row("out of memory, in a lazy request") as row:
        row.detail = _check_raised_lazily(step)
    with step.row("out of memory, of the device") as row:
        row.detail = _check_device_memory(step)
    with step.row("deadline: members that are late") as row:
        row.detail = _check_deadline(step)
    _check_policies(step)


def _check_raised(step: Step) -> str:
    module, batch = network_of(0), inputs(11)
    member = save_member(step.folder, "hungry", module, "Hungry")
    spec = write_spec(step.folder, [member])
    runtime = Runtime.load(spec, step.folder, step.device)
    with logged() as messages:
        result = runtime.run(list(batch))
    changed = require_right(result, right_scores([module], batch), TOLERANCE["float32"])
    halvings = sum("trying halves" in message for message in messages)
    assert halvings >= 2, messages
    return f"halved {halvings} times; largest difference {changed:.1e}"


def _check_raised_lazily(step: Step) -> str:
    """A lazy request that is too large is answered by all members, in parts."""
    modules = [network_of(seed, outputs=2) for seed in range(3)]
    members = [save_member(step.folder, f"m{i}", each, "Hungry") for i, each in enumerate(modules)]
    spec = write_spec(step.folder, members, task="presence", labels=["absent", "present"])
    service = load_service(spec, step.folder, device=step.device)
    full, lazy = (_ask(service, "any", lazy) for lazy in (False, True))
    assert [each["label"] for each in lazy] == [each["label"] for each in full]
    return f"{len(lazy)} decisions equal those of all members"


def _check_device_memory(step: Step) -> str:
    """Allow the process little more memory than 8 samples need, and compute 64."""
    if not step.on_gpu:
        raise Skipped("only a GPU's memory can be bounded")
    side = 224
    module = network_of(0, WIDTH_OF_LARGE)
    spec = write_spec(step.folder, [save_member(step.folder, "member", module)], side=side)
    runtime = Runtime.load(spec, step.folder, step.device)
    batch = list(inputs(64, side))
    expected = runtime.run(batch).scores
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(step.device)
    runtime.run(batch[:8])
    allowed = 1.25 * torch.cuda.max_memory_reserved(step.device)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(step.device).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed / total, step.device)
    try:
        with logged() as messages:
            result = runtime.run(batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, step.device)
    halvings = sum("trying halves" in message for message in messages)
    assert halvings, "64 samples fitted into the memory of 8, so that nothing was tried"
    changed = require_right(result, expected, TOLERANCE["float32"])
    return f"halved {halvings} times within {allowed / 1e6:.0f} MB; difference {changed:.1e}"


def _check_deadline(step: Step) -> str:
    """A fast member, then a slow one that begins in time, then one that does not begin."""
    members = [
        save_member(step.folder, "fast", network_of(0)),
        *(
            save_member(
                step.folder, f"slow{i}", network_of(i, 8 * i), "Slow", seconds=_SLOW_SECONDS
            )
            for i in (1, 2)
        ),
    ]
    spec = write_spec(step.folder, members)
    runtime = Runtime.load(spec, step.folder, step.device)
    batch = list(inputs(3))
    started = time.monotonic()
    result = runtime.run(batch, deadlines=[started + _DEADLINE_SECONDS] * len(batch))
    seconds = time.monotonic() - started
    states = [{State(int(state)) for state in states} for states in result.states]
    assert states[0] == {State.ANSWERED}, f"the fast member: {states[0]}"
    late = sorted(str(min(each)) for each in states[1:])
    assert {State.ANSWERED} in states[1:], f"no slow member answered: {late}"
    assert {State.LATE} in states[1:], f"no slow member is late: {late}"
    return f"the fast member and one slow one answered in {seconds:.2f} s, the other was late"


def _check_policies(step: Step) -> None:
    """Check that lazy decisions are those of all members, and those of the CPU."""
    modules = [network_of(seed, outputs=2) for seed in range(5)]
    members = [save_member(step.folder, f"m{i}", each) for i, each in enumerate(modules)]
    spec = write_spec(step.folder, members, task="presence", labels=["absent", "present"])
    services: list[EnsembleService] = []
    with step.row("service: members load for requests") as row:
        services += [
            load_service(spec, step.folder, device=device)
            for device in (step.device, torch.device("cpu"))
        ]
        row.detail = f"{len(members)} members"
    for policy in _POLICIES if len(services) == 2 else ():
        with step.row(f"lazy policy {policy}") as row:
            on_device, on_cpu = services
            row.detail = _check_policy(on_device, on_cpu, policy)


def _check_policy(on_device: EnsembleService, on_cpu: EnsembleService, policy: str) -> str:
    full_policy = "mean" if policy.startswith("cascade") else policy
    on_all, lazily = _ask(on_cpu, full_policy, False), _ask(on_device, policy, True)
    cascade = full_policy != policy
    if cascade:
        # A cascade's decisions are its own, not those of the mean of all members.
        on_all = _ask(on_cpu, policy, False)
    else:
        on_device_all = _ask(on_device, policy, False)
        changed = max(
            abs(one["score"] - other["score"])
            for one, other in zip(on_all, on_device_all, strict=True)
        )
        assert changed <= TOLERANCE["float32"], f"scores differ by {changed:.1e} from the CPU's"
    same = [one["label"] == other["label"] for one, other in zip(on_all, lazily, strict=True)]
    assert all(same), f"{same.count(False)} of {len(same)} decisions differ from all members'"
    used = [each["members_used"] for each in lazily]
    assert min(used) < 5, "no member was left out"
    return f"{len(used)} decisions right with {sum(used) / len(used):.1f} of 5 members on average"


def _ask(service: EnsembleService, policy: str, lazy: bool) -> list[dict[str, Any]]:
    parts = [Part("file", "image/png", file) for file in image_files(12)]
    options = {"policy": policy, "lazy": json.dumps(lazy)}
    parts += [Part(name, "", value.encode()) for name, value in options.items()]
    (response,) = service.answer([RawRequest(parts)])
    assert response.status == 200, response.body.decode()
    predictions: list[dict[str, Any]] = json.loads(response.body)["predictions"]
    return predictions
