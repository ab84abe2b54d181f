"""Plans how a server gets from its actual state to the desired one without losing a request.

`next_action` is a pure function. Whoever carries out an action asks the server for its state again
and plans anew. So there is no plan that could be half done: an interrupted run is continued by the
next one, and what others change meanwhile is taken into account.

TorchServe takes the contents of an archive and the batching only when it registers a version, and
it has each version once. A version that is to be registered anew must therefore go
first. If it is the only one that can answer, a *stand-in* answers meanwhile: the new contents under
another version, which is removed at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from .archive_source import ArchiveSource

GENERATED = ".applied-"
"""Part of the names of files that `apply` itself writes into a model store, and removes again."""

_STAND_IN_SUFFIX = ".0"


@dataclass(frozen=True)
class Contents:
    """What a version was registered from.

    Attributes:
        archive: name of the archive's file in the model store.
        digest: digest of the archive; None if no worker could be asked for it.
        batch_size: largest number of requests in one batch.
        max_batch_delay_ms: longest time that a request waits for its batch to fill.
    """

    archive: str
    digest: str | None
    batch_size: int
    max_batch_delay_ms: int

    def differences(self, desired: Contents) -> list[str]:
        """Return what must change to get other contents, as phrases; empty if they are equal."""
        found = []
        if (self.batch_size, self.max_batch_delay_ms) != (
            desired.batch_size,
            desired.max_batch_delay_ms,
        ):
            found.append(
                f"batches of {self.batch_size} in {self.max_batch_delay_ms} ms, not of "
                f"{desired.batch_size} in {desired.max_batch_delay_ms} ms"
            )
        if self.digest is None:
            if self.archive != desired.archive:
                found.append(f"{self.archive}, not {desired.archive}")
        elif self.digest != desired.digest and not found:
            found.append(f"archive {_short(self.digest)}, not {_short(desired.digest)}")
        return found


@dataclass(frozen=True)
class DesiredVersion:
    """One version that the server is to have.

    Attributes:
        version: the version.
        contents: what it is registered from.
        own_workers: number of workers that it gets at its registration.
        workers: number of workers that it is to have; None: any number from 1.
        source: where the archive comes from; plans do not depend on it.
    """

    version: str
    contents: Contents
    own_workers: int = 1
    workers: int | None = None
    source: ArchiveSource | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class DesiredModel:
    """The versions of one model that the server is to have; it keeps no others.

    Attributes:
        versions: the versions.
        default: the version that answers requests which name none.
    """

    versions: tuple[DesiredVersion, ...]
    default: str

    def __post_init__(self) -> None:
        assert any(each.version == self.default for each in self.versions)

    def in_order(self) -> list[DesiredVersion]:
        """Return the versions, the default one first, as TorchServe makes the first its default."""
        return sorted(self.versions, key=lambda each: each.version != self.default)


@dataclass(frozen=True)
class DesiredState:
    """What a server is to have.

    Attributes:
        models: name -> versions of each model.
        remove_other_models: whether models that are not listed are unregistered.
    """

    models: Mapping[str, DesiredModel]
    remove_other_models: bool = False


@dataclass(frozen=True)
class ActualVersion:
    """One version that a server has.

    Attributes:
        contents: what it was registered from.
        workers: number of its workers.
        ready: number of workers that have loaded.
    """

    contents: Contents
    workers: int
    ready: int


@dataclass(frozen=True)
class ActualModel:
    """The versions of one model that a server has.

    Attributes:
        versions: version -> its state.
        default: the version that answers requests which name none.
    """

    versions: Mapping[str, ActualVersion]
    default: str


ActualState = Mapping[str, ActualModel]
"""Name of each model that a server has -> its versions."""


class Verb(StrEnum):
    """What is done to a version."""

    REGISTER = "register"
    WAIT = "wait for"
    SCALE = "scale"
    SET_DEFAULT = "set-default"
    UNREGISTER = "unregister"


@dataclass(frozen=True)
class Action:
    """One change of a server.

    Attributes:
        verb: what is done.
        name: name of the model.
        version: the version.
        reason: why.
        workers: number of workers that the version gets, if it is registered or scaled.
        source: for a registration the desired version whose contents are registered.
    """

    verb: Verb
    name: str
    version: str
    reason: str = field(compare=False)
    workers: int | None = None
    source: DesiredVersion | None = None

    def __str__(self) -> str:
        to = f" to {self.workers}" if self.verb is Verb.SCALE else ""
        archive = f" from {self.source.contents.archive}" if self.source else ""
        return f"{self.verb} {self.name} {self.version}{to}{archive}: {self.reason}"


def stand_in_version(desired: DesiredModel, version: str) -> str:
    """Return the version under which the contents of another version answer meanwhile."""
    listed = {each.version for each in desired.versions}
    stand_in = version + _STAND_IN_SUFFIX
    while stand_in in listed:
        stand_in += _STAND_IN_SUFFIX
    return stand_in


def next_action(desired: DesiredState, actual: ActualState) -> Action | None:
    """Return what is to be done first; None if the server is as desired."""
    for name, model in desired.models.items():
        for action in _actions(name, model, actual.get(name)):
            return action
    if desired.remove_other_models:
        for name in sorted(set(actual) - set(desired.models)):
            others = [each for each in actual[name].versions if each != actual[name].default]
            version = (others or [actual[name].default])[0]
            return Action(Verb.UNREGISTER, name, version, "the deployment does not list the model")
    return None


def plan(desired: DesiredState, actual: ActualState) -> list[Action]:
    """Return all actions, in their order, that lead from one state to the other."""
    actions: list[Action] = []
    while (action := next_action(desired, actual)) is not None:
        assert action not in actions[-1:], action
        actions.append(action)
        actual = after(actual, action)
    return actions


def after(actual: ActualState, action: Action) -> ActualState:
    """Return the state that an action leads to if it succeeds."""
    model = actual.get(action.name)
    versions = dict(model.versions) if model else {}
    default = model.default if model else action.version
    if action.verb is Verb.REGISTER:
        assert action.source is not None
        workers = action.source.own_workers
        versions[action.version] = ActualVersion(action.source.contents, workers, workers)
    elif action.verb is Verb.UNREGISTER:
        del versions[action.version]
    elif action.verb is Verb.SET_DEFAULT:
        default = action.version
    else:
        before = versions[action.version]
        workers = before.workers if action.workers is None else action.workers
        versions[action.version] = replace(before, workers=workers, ready=workers)
    others = {name: each for name, each in actual.items() if name != action.name}
    return others | {action.name: ActualModel(versions, default)} if versions else others


def _actions(name: str, desired: DesiredModel, model: ActualModel | None) -> Iterator[Action]:
    """Yield what is to be done to one model; only the first action is valid, it changes the rest.

    Args:
        name: name of the model.
        desired: the state that it is to have.
        model: the state that it has; None if it is not registered.
    """
    actual = model.versions if model else {}
    for each in desired.in_order():
        if each.version not in actual:
            yield Action(
                Verb.REGISTER, name, each.version, "the server does not have it", source=each
            )
    assert model is not None
    present = [(each, actual[each.version]) for each in desired.in_order()]
    outdated = [each for each, now in present if now.contents.differences(each.contents)]
    current = [(each, now) for each, now in present if each not in outdated]
    for each, now in current:
        workers = each.workers
        stand_in = stand_in_version(desired, each.version)
        if workers is None and stand_in == model.default:
            # The version had so many before it was registered anew.
            workers = max(now.workers, actual[stand_in].workers)
        yield from _grow(name, each.version, now, workers)
    wanted = next(each for each in desired.versions if each.version == desired.default)
    if wanted not in outdated and model.default != desired.default:
        yield Action(
            Verb.SET_DEFAULT, name, desired.default, f"the default version is {model.default}"
        )
    yield from _replace(name, desired, model, outdated)
    listed = {each.version for each in desired.versions}
    for version in actual:
        if version not in listed and version != model.default:
            yield Action(Verb.UNREGISTER, name, version, "the deployment does not list it")
    for each, now in current:
        if each.workers is not None and now.workers > each.workers:
            yield Action(
                Verb.SCALE,
                name,
                each.version,
                _has_workers(now),
                workers=each.workers,
            )


def _grow(name: str, version: str, now: ActualVersion, workers: int | None) -> Iterator[Action]:
    """Yield what gives a version as many READY workers as it is to have."""
    if now.ready < min(now.workers, workers or now.workers):
        reason = f"{now.ready} of {now.workers} workers are READY"
        yield Action(Verb.WAIT, name, version, reason)
    wanted = workers or max(1, now.workers)
    if now.workers < wanted:
        yield Action(Verb.SCALE, name, version, _has_workers(now), workers=wanted)


def _replace(
    name: str, desired: DesiredModel, model: ActualModel, outdated: Sequence[DesiredVersion]
) -> Iterator[Action]:
    """Yield what removes versions that must be registered anew.

    Args:
        name: name of the model.
        desired: the state that it is to have.
        model: the state that it has.
        outdated: versions that were registered from other contents.
    """
    for each in outdated:
        reasons = "; ".join(model.versions[each.version].contents.differences(each.contents))
        if each.version != model.default:
            yield Action(
                Verb.UNREGISTER,
                name,
                each.version,
                f"it runs {reasons}, and TorchServe takes that only at registration; requests that "
                "name this version are answered 404 until it is registered anew",
            )
    for each in outdated:
        if each.version == model.default:
            yield from _stand_in(name, desired, model, each)


def _stand_in(
    name: str, desired: DesiredModel, model: ActualModel, replaced: DesiredVersion
) -> Iterator[Action]:
    """Yield what makes the stand-in of a version the default one."""
    version = stand_in_version(desired, replaced.version)
    contents = replace(replaced.contents, archive=_stand_in_archive(replaced, version), digest=None)
    stand_in = replace(replaced, version=version, contents=contents)
    now = model.versions.get(version)
    purpose = f"it answers while {replaced.version} is registered anew"
    if now is None:
        yield Action(Verb.REGISTER, name, version, purpose, source=stand_in)
        return
    if replace(now.contents, digest=None).differences(contents):
        yield Action(Verb.UNREGISTER, name, version, "it is left over from another deployment")
    yield from _grow(name, version, now, model.versions[replaced.version].workers or 1)
    yield Action(Verb.SET_DEFAULT, name, version, purpose)


def _stand_in_archive(replaced: DesiredVersion, version: str) -> str:
    """Return the name of a stand-in's file, which tells what it was made of."""
    digest = (replaced.contents.digest or "").removeprefix("sha256:")[:12]
    return f"stand-in-{version}{GENERATED}{digest}.mar"


def _has_workers(now: ActualVersion) -> str:
    return f"it has {now.workers} worker{'' if now.workers == 1 else 's'}"


def _short(digest: str | None) -> str:
    return "unknown" if digest is None else digest[: len("sha256:") + 8]
