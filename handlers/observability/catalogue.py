"""The list of all metrics of a worker.

It is the only place where a metric is described. The worker emits what it lists, and the reference,
the Grafana dashboard and the alert rules are made from it (`serving.monitoring`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MODEL_LABELS = ("model_name", "model_version")
"""Labels that every metric has. TorchServe adds the label Hostname."""

MAX_LABELS = 100
"""Number of labels of an ensemble that have a series of their own in `PREDICTIONS`.

Prometheus and TorchServe keep every series in memory. Predictions of all further labels are counted
together under `OTHER_LABELS`.
"""

OTHER_LABELS = "(other)"
"""Value of the metrics' label for all labels of an ensemble beyond the first `MAX_LABELS`."""

MAX_CONFUSED_LABELS = 20
"""Number of labels of an ensemble that have rows and columns of their own in
`CANDIDATE_CONFUSION`, so that it has at most 529 series."""

NO_LABEL, SEVERAL_LABELS = "(none)", "(several)"
"""Values of the labels of `CANDIDATE_CONFUSION` for a sample with no label, or with several."""

AGREED, DISAGREED = "agreed", "disagreed"
"""Values of the label `outcome` of `CANDIDATE_SAMPLES`."""

DROP_REASONS = ("busy", "late", "incomplete", "not_running")
"""Values of the label `reason` of `CANDIDATE_DROPPED`."""

SIDES = ("candidate", "current", "fallback")
"""Values of the label `side` of `ROLLOUT_REQUESTS`."""

BUCKET_LABEL = "le"
"""Label of a histogram's buckets: the largest value that a bucket counts."""


class Kind(StrEnum):
    """How the values of a metric are to be read."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric of a worker. Metrics are compared by identity, which makes them quick to look up.

    Attributes:
        name: its name at the metrics endpoint, which ends with the unit (and ``_total`` for a
            counter).
        kind: how its values are to be read.
        unit: what is counted or measured.
        help: what it tells, as a sentence.
        labels: its labels beside `MODEL_LABELS`.
        buckets: for a histogram the largest value of each bucket, in ascending order, without
            infinity.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def series_names(self) -> tuple[str, ...]:
        """The names of its series at the metrics endpoint; a histogram has three."""
        if self.kind is Kind.HISTOGRAM:
            return f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count"
        return (self.name,)


REQUESTS = Metric(
    "ensemble_requests_total",
    Kind.COUNTER,
    "requests",
    "Requests that the workers answered, by HTTP status.",
    ("status",),
)
ERRORS = Metric(
    "ensemble_errors_total",
    Kind.COUNTER,
    "requests",
    "Requests that were refused, by the `type` of the error in the answer.",
    ("kind",),
)
SAMPLES = Metric(
    "ensemble_samples_total", Kind.COUNTER, "samples", "Samples that were answered with a decision."
)
SAMPLE_ERRORS = Metric(
    "ensemble_sample_errors_total",
    Kind.COUNTER,
    "samples",
    "Samples without a decision in requests that were answered (`on_error=skip`), by the `type` "
    "of their error.",
    ("kind",),
)
BATCH_SECONDS = Metric(
    "ensemble_batch_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time of a batch in the worker, from its arrival until all of its answers are written.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
BATCH_REQUESTS = Metric(
    "ensemble_batch_requests",
    Kind.HISTOGRAM,
    "requests",
    "Requests that TorchServe put into one batch.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
BATCH_SAMPLES = Metric(
    "ensemble_batch_samples",
    Kind.HISTOGRAM,
    "samples",
    "Readable samples of one batch.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
)
STAGE_SECONDS = Metric(
    "ensemble_stage_seconds_total",
    Kind.COUNTER,
    "seconds",
    "Time that batches spent in each stage: parse, decode, members, policy, write.",
    ("stage",),
)
MEMBER_SECONDS = Metric(
    "ensemble_member_seconds_total",
    Kind.COUNTER,
    "seconds",
    "Time that each member computed. Members may run side by side, so that the sum can exceed the "
    "stage `members`. A call that computes several members counts for each with an equal share.",
    ("member",),
)
MEMBER_SAMPLES = Metric(
    "ensemble_member_samples_total",
    Kind.COUNTER,
    "samples",
    "Samples that each member computed.",
    ("member",),
)
MEMBER_FAILURES = Metric(
    "ensemble_member_failures_total",
    Kind.COUNTER,
    "samples",
    "Samples that a member did not answer: it failed, or had not begun at the deadline (late).",
    ("member", "kind"),
)
COMPARED = Metric(
    "ensemble_compared_samples_total",
    Kind.COUNTER,
    "samples",
    "Samples on which at least two members voted, so that they could disagree.",
)
DISAGREEMENTS = Metric(
    "ensemble_disagreements_total",
    Kind.COUNTER,
    "samples",
    "Samples on which not all members voted for the same labels.",
)
ABSTENTIONS = Metric(
    "ensemble_abstentions_total",
    Kind.COUNTER,
    "samples",
    "Samples on which the policy abstained.",
)
PREDICTIONS = Metric(
    "ensemble_predictions_total",
    Kind.COUNTER,
    "samples",
    f"Samples for which the policy chose a label. The first {MAX_LABELS} labels of the spec have a "
    f"series each, and all others share `{OTHER_LABELS}`.",
    ("label",),
)
ROLLOUT_REQUESTS = Metric(
    "ensemble_rollout_requests_total",
    Kind.COUNTER,
    "requests",
    "Requests that took part in a canary, by the side that answered: `candidate`, `current`, or "
    "`fallback` for the current ensemble after the candidate had failed.",
    ("side",),
)
CANDIDATE_SAMPLES = Metric(
    "ensemble_candidate_samples_total",
    Kind.COUNTER,
    "samples",
    "Samples that a shadow decided, by whether it agreed with the answer: `agreed`, `disagreed`.",
    ("outcome",),
)
CANDIDATE_CONFUSION = Metric(
    "ensemble_candidate_confusion_total",
    Kind.COUNTER,
    "samples",
    "Samples that a shadow decided, by the label of the answer and the label of the candidate. The "
    f"first {MAX_CONFUSED_LABELS} labels of the spec are told apart, and all others are "
    f"`{OTHER_LABELS}`; a sample without a label, or with several, is `{NO_LABEL}` or "
    f"`{SEVERAL_LABELS}`.",
    ("current", "candidate"),
)
CANDIDATE_FAILURES = Metric(
    "ensemble_candidate_failures_total",
    Kind.COUNTER,
    "samples",
    "Samples that were answered and that a shadow could not decide, because a member failed.",
)
CANDIDATE_DROPPED = Metric(
    "ensemble_candidate_dropped_samples_total",
    Kind.COUNTER,
    "samples",
    "Samples that a shadow did not compare. `busy`: the batch before was not compared yet. `late`: "
    "the deadline was over. `incomplete`: scores came from the cache or from lazy members. "
    "`not_running`: the candidate's process had ended.",
    ("reason",),
)
CANDIDATE_SECONDS = Metric(
    "ensemble_candidate_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time in which a shadow decided a batch, after its answers had been handed back.",
    buckets=BATCH_SECONDS.buckets,
)
CACHE_HITS = Metric(
    "ensemble_score_cache_hits_total",
    Kind.COUNTER,
    "samples",
    "Samples whose scores were in the score cache.",
)
CACHE_MISSES = Metric(
    "ensemble_score_cache_misses_total",
    Kind.COUNTER,
    "samples",
    "Samples whose scores were looked up in the score cache and not found.",
)
CACHE_BYTES = Metric(
    "ensemble_score_cache_bytes",
    Kind.GAUGE,
    "bytes",
    "Memory of a worker's score cache.",
    ("worker",),
)
MEMORY_BYTES = Metric(
    "ensemble_worker_memory_bytes",
    Kind.GAUGE,
    "bytes",
    "Memory of a worker's process (resident set).",
    ("worker",),
)
GPU_MEMORY_BYTES = Metric(
    "ensemble_worker_gpu_memory_bytes",
    Kind.GAUGE,
    "bytes",
    "GPU memory that torch holds for a worker; 0 on a CPU.",
    ("worker",),
)
LOADS = Metric(
    "ensemble_worker_loads_total",
    Kind.COUNTER,
    "loads",
    "Times that a worker has loaded all members. It grows when workers are added, and whenever a "
    "worker died and was started again.",
)

METRICS = (
    REQUESTS,
    ERRORS,
    SAMPLES,
    SAMPLE_ERRORS,
    BATCH_SECONDS,
    BATCH_REQUESTS,
    BATCH_SAMPLES,
    STAGE_SECONDS,
    MEMBER_SECONDS,
    MEMBER_SAMPLES,
    MEMBER_FAILURES,
    COMPARED,
    DISAGREEMENTS,
    ABSTENTIONS,
    PREDICTIONS,
    ROLLOUT_REQUESTS,
    CANDIDATE_SAMPLES,
    CANDIDATE_CONFUSION,
    CANDIDATE_FAILURES,
    CANDIDATE_DROPPED,
    CANDIDATE_SECONDS,
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_BYTES,
    MEMORY_BYTES,
    GPU_MEMORY_BYTES,
    LOADS,
)
"""All metrics that a worker emits."""
