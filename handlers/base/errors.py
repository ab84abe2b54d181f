"""Every error that this project raises on purpose.

::

    EnsembleError
    ├── SpecError             a mistake in ensemble.yaml                      (at build or load)
    ├── ArchiveError          a missing, damaged or foreign archive           (at build or load)
    ├── MemberError           a member that cannot be loaded or run           (at load, or 500)
    ├── PreprocessingError    the deployment's own code failed on a sample    (500)
    ├── LateError             members had not begun at the request's deadline (504)
    ├── BusyError             the worker had no time left for this request    (503)
    ├── RegistryError         an archive cannot be stored, found or fetched   (on the command line)
    ├── ServerError           TorchServe cannot be started or does not answer (client side)
    │   └── WorkerDiedError   a worker ended while its model was loading
    └── RequestError          one request is refused, its neighbours are not  (400)
        ├── SampleError       one sample is unreadable                        (400)
        ├── PolicyError       unknown policy or wrong parameter               (400)
        ├── TooLargeError     more samples, pixels or bytes than allowed      (413)
        └── UnsupportedError  a body is compressed in an unknown way          (415)

Messages name the thing, the place and the remedy.
"""

from __future__ import annotations


class EnsembleError(Exception):
    """Base of every error that this project raises on purpose.

    Attributes:
        status: HTTP status that a client sees if the error answers a request.
        place: keys that lead to the value of the spec which is at fault, e.g. ``("members", "cnn",
            "architecture")`` for the member named cnn; empty if it is not known to be one value.
    """

    status: int = 500
    place: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """The error's text for people, without class name or traceback."""
        return str(self)


class SpecError(EnsembleError):
    """A mistake in the ensemble spec."""


class ArchiveError(EnsembleError):
    """A model archive is missing, damaged or was not built by this project."""


class MemberError(EnsembleError):
    """A member cannot be loaded or run."""


class PreprocessingError(EnsembleError):
    """The deployment's own preprocessing code, which the spec names, failed on one sample."""


class LateError(EnsembleError):
    """Members had not started to compute a request when its deadline passed."""

    status = 504


class BusyError(EnsembleError):
    """The other requests of a batch left no time for this one. The client may send it again."""

    status = 503


class RegistryError(EnsembleError):
    """A registry of archives cannot be used, or does not have what it is asked for."""


class ServerError(EnsembleError):
    """TorchServe cannot be started, stopped or reached, or refuses a management call."""


class WorkerDiedError(ServerError):
    """A worker process ended while it loaded its model.

    Attributes:
        worker_traceback: the traceback that the worker printed before it ended; empty if there is
            none.
    """

    def __init__(self, message: str, worker_traceback: str = "") -> None:
        super().__init__(message)
        self.worker_traceback = worker_traceback


class RequestError(EnsembleError):
    """One request is refused; the other requests of its batch are answered."""

    status = 400


class SampleError(RequestError):
    """One sample of a request cannot be read.

    Attributes:
        sample: the sample's name (form field, file name or position).
        index: the sample's position in its request, from 0.
    """

    def __init__(self, message: str, *, sample: str = "", index: int = 0) -> None:
        super().__init__(message)
        self.sample = sample
        self.index = index


class PolicyError(RequestError):
    """A policy does not exist, is not allowed here, or has a wrong parameter."""


class TooLargeError(RequestError):
    """A request exceeds a limit on samples, pixels or bytes."""

    status = 413


class UnsupportedError(RequestError):
    """A request's body is compressed in a way that this project does not know."""

    status = 415


REFUSALS = tuple(
    kind.__name__
    for kind in (
        EnsembleError,
        MemberError,
        PreprocessingError,
        LateError,
        BusyError,
        RequestError,
        SampleError,
        PolicyError,
        TooLargeError,
        UnsupportedError,
    )
)
"""Names of the errors with which a worker refuses requests: the ``type`` in its answers."""


def reason(error: Exception) -> str:
    """Return the message of another library's error, or its class name if it has no message."""
    return str(error) or type(error).__name__


def unforeseen() -> EnsembleError:
    """Return the error that answers a request on which this project's own code failed.

    The other requests of the batch are answered all the same.
    """
    return EnsembleError(
        "an unexpected error; its traceback is in the worker's log: please report it"
    )


def busy() -> BusyError:
    """Return the error that answers a request for which its batch had no time left."""
    return BusyError(
        "the requests before this one took all the time that the worker has for one batch: send "
        "this one again"
    )
