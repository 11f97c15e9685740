"""What the documents of a run hold (stage.json, state.json, losses.json), and which change of state may follow which."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, Protocol, TypedDict

from retain.sweeps.base.documents import read_document

UNENDED = ("planned", "queued", "running")
STOPPED = ("failed", "cancelled", "skipped")
"""States of runs that `retain retry` plans again."""
ENDED = ("done", *STOPPED)
DAMAGED = "damaged"
"""The state that `retain status` shows for a run whose files cannot be read; it is never written."""
STATES = (*UNENDED, *ENDED)

CHANGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "queue": ("queued", UNENDED),
    "unqueue": ("planned", ("queued",)),
    "begin": ("running", (*UNENDED, "failed", "skipped")),
    "stop": ("planned", ("running",)),
    "requeue": ("queued", (*UNENDED, "failed")),
    "fail": ("failed", UNENDED),
    "cancel": ("cancelled", UNENDED),
    "skip": ("skipped", ("planned", "queued", "skipped")),
    "finish": ("done", (*UNENDED, "cancelled")),
    "retry": ("planned", STOPPED),
    "reopen": ("planned", ENDED),
}
"""Each change of state: the state it leads to, and the states it may follow.

`finish` may follow `cancelled`: a run that is cancelled during its last step has a complete result, also if it was retried
meanwhile. `begin` may follow `failed` and `skipped`, as `retain run` trains what is not done. `reopen` is for searches.
"""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run, between two interruptions. Times are seconds since 1970."""

    start: float
    host: str
    pid: int
    job_id: str | None = None
    world: int = 1
    """Number of ranks that trained together."""
    tokens_at_start: int = 0
    """Tokens in the checkpoint that the attempt resumed from."""
    end: float | None = None
    tokens: int = 0
    """Tokens trained when the attempt ended; those after the last checkpoint are trained again."""
    cause: str | None = None
    """How the attempt ended, such as finished, error, lost (it died without reporting) or SIGTERM; None while it lasts."""
    note: str | None = None
    """What a reader of the results should know: damaged checkpoints, another number of ranks."""
    failure: str | None = None
    """The failure class that ended the attempt; see `launchers.stage.failures`."""
    device: str | None = None
    """The name of the GPUs; None on CPUs."""
    joules: float | None = None
    """The energy that its devices have counted; None where they do not."""
    steps: str | None = None
    """How its steps were computed, such as "bf16, compiled"; None before they begin, and for runs that train no such steps."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Fields that another version of Retain has written; they are kept."""

    def ended(self, end: float, progress: "Progress", cause: str, failure: str | None = None) -> "Attempt":
        """The attempt, ended with this progress."""
        return replace(self, end=end, tokens=progress.tokens, joules=progress.joules, cause=cause, failure=failure)


@dataclass(frozen=True)
class Progress:
    """Progress of the current attempt."""

    tokens: int = 0
    total: int = 0
    loss: float | None = None
    """Training loss, nats per token."""
    tokens_per_second: float = 0.0
    phase: str = "training"
    """training, evaluating, or writing (the results)."""
    joules: float | None = None
    """As in `Attempt`."""


@dataclass(frozen=True)
class StateSummary:
    """What readers show of a run: the content of state.json but for what matters only to those who change or check the run."""

    state: Annotated[str, *STATES] = "planned"
    attempts: tuple[Attempt, ...] = ()
    job_ids: tuple[str, ...] = ()
    """The SLURM jobs that have trained the run."""
    heartbeat: float | None = None
    """When the last progress was reported, in seconds since 1970."""
    progress: Progress = Progress()
    reason: str | None = None
    """One line: why the run failed, was cancelled or was skipped."""
    forgiven: int = 0
    """The number of attempts before the last `retain retry`, which the limits on retries no longer count."""
    weights_freed: bool = False
    """Whether `retain gc --weights` has removed the weights of the done run."""

    @property
    def counted_attempts(self) -> tuple[Attempt, ...]:
        """The attempts since the last `retain retry`."""
        return self.attempts[self.forgiven :]


@dataclass(frozen=True)
class State(StateSummary):
    """The content of state.json."""

    submission: str | None = None
    """The token of the last submission to SLURM."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file of a done run, by its path in the run's folder."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """As in an attempt."""

    def as_json(self) -> dict[str, Any]:
        """The fields of state.json."""
        # dataclasses.asdict would copy every value.
        fields = vars(self) | {"attempts": [_with_unknown(vars(attempt)) for attempt in self.attempts]}
        return _with_unknown(fields | {"progress": vars(self.progress)})


@dataclass(frozen=True)
class AttemptCost:
    """What one attempt took."""

    start: float
    """Seconds since 1970."""
    device_hours: float
    """Its hours, times the devices that trained together; of an attempt that still runs, up to its last report."""
    lost_hours: float
    """The part of them after its last checkpoint, which the next attempt trained again; 0 until there is a next attempt."""
    device: str | None
    """The name of the GPUs; None on CPUs."""
    cause: str | None
    """How it ended; None while it lasts."""
    joules: float | None = None
    """The energy that its devices have counted; None where they do not."""


def attempt_costs(state: StateSummary) -> list[AttemptCost]:
    """What each attempt at a run took. Lost time is the attempt's time, in the ratio of tokens that were trained again."""
    found = []
    for number, attempt in enumerate(state.attempts):
        end = attempt.end or state.heartbeat or attempt.start
        hours = max(0.0, end - attempt.start) * attempt.world / 3600
        lost = 0.0
        if number + 1 < len(state.attempts):
            trained = attempt.tokens - attempt.tokens_at_start
            again = attempt.tokens - state.attempts[number + 1].tokens_at_start
            lost = min(1.0, max(0.0, again / trained)) if trained > 0 else 1.0
        joules = state.progress.joules if attempt.end is None else attempt.joules
        found.append(AttemptCost(attempt.start, hours, hours * lost, attempt.device, attempt.cause, joules))
    return found


class Counted(Protocol):
    """Something whose energy may be known."""

    @property
    def joules(self) -> float | None: ...


def total_joules(parts: Iterable[Counted]) -> float | None:
    """The energy of the parts that know theirs; None if none do."""
    known = [part.joules for part in parts if part.joules is not None]
    return sum(known) if known else None


def damaged_state(error: Exception) -> State:
    """What is shown of a run whose files cannot be read."""
    return State(state=DAMAGED, reason=str(error))


def _with_unknown(fields: Mapping[str, Any]) -> dict[str, Any]:
    known = dict(fields)
    return {**known.pop("unknown"), **known}


OPTIMIZER = "optimizer.safetensors"
"""AdamW's moments at the end of a run whose stage.json has KEEPS_OPTIMIZER, in the folder of its weights."""
FISHER_FILE = "fisher.safetensors"
"""The Fisher information that a run has estimated for anchors, where other runs have their weights."""
REFERENCE_FILE = "reference.safetensors"
"""The reference log-probabilities of pairs that a run has computed, where other runs have their weights."""
PART = "part"
"""The folder with the files of a run that prepares a part of a corpus."""
ASSEMBLED = "assembled.json"
"""What a run that puts the parts of a corpus together leaves: the fingerprint of the corpus."""
SUBMITTED = "submitted.json"
"""What a run leaves that has submitted a study once its data was prepared: the keys of the submitted runs."""
KEEPS_OPTIMIZER = "keeps_optimizer"
CHAT_TEMPLATE = "chat_template"


class Spec(TypedDict):
    """The content of stage.json. Fields that are not required are absent in runs registered before they existed."""

    key: str
    stage: str
    parent: str | None
    recipe: dict[str, Any]
    """With stage and parent, the payload of the key, so its content is checked by the key."""
    name: NotRequired[str]
    """The name of a further stage, as the study has it that registered the run last. It does not enter the key."""
    keeps_optimizer: NotRequired[bool]
    """Whether the done run keeps AdamW's moments, as a stage below continues with them."""
    kind: NotRequired[str]
    tokens: NotRequired[int]
    needs: NotRequired[list[str]]
    leaves: NotRequired[list[str]]
    evaluation: dict[str, "str | Task"]
    """Of each held-out split the fingerprint of its corpus; of a linear stage, its task."""
    halves: NotRequired[dict[str, str]]
    """Of each held-out split that is a half of its corpus's, which half; see `sweeps.tree.heldout_splits`."""
    others: NotRequired[dict[str, str]]
    """The fingerprints of the study's other corpora, by name, on which the final weights are evaluated too."""
    values: NotRequired[dict[str, str]]
    """The fingerprints of the values of corpora with `by`, by that of the corpus. They do not enter the key."""
    preferences: NotRequired[dict[str, dict[str, Any]]]
    """By the fingerprint of a corpus of pairs, the β and the key of the reference by which the final weights are measured on
    its pairs; see `sweeps.tree.heldout_splits`."""
    tokenizer: NotRequired[str]
    """The fingerprint of the tokeniser; searches have none."""
    chat_template: NotRequired[str]
    """The chat template of the study's tokeniser, for the one beside the weights. Absent if it is that of the checkpoint, or
    came with the tokeniser from the hub."""
    execution: "SpecExecution"
    axes: dict[str, Any]
    study: str
    versions: dict[str, str]
    reads: NotRequired[dict[str, Any]]
    """Only of runs that prepare corpora: the study that they read it from; see `launchers.stage.preparation.request`."""


def updated_spec(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stage.json of a run that is registered again; None if nothing changes."""
    others: dict[str, str] = dict(old.get("others", {}))
    for name, corpus in new.get("others", {}).items():
        if corpus not in others.values():
            others[f"{name}-{corpus[:8]}" if name in others else name] = corpus
    keeps = KEEPS_OPTIMIZER in old or KEEPS_OPTIMIZER not in new
    values: dict[str, str] = {**old.get("values", {}), **new.get("values", {})}
    same = all(old.get(field) == new.get(field) for field in ("execution", "reads", "needs"))
    if same and keeps and others == old.get("others", {}) and values == old.get("values", {}):
        return None
    return {**old, **new} | ({"others": others} if others else {}) | ({"values": values} if values else {})


class Task(TypedDict):
    """What a linear stage learns; see `sweeps.schema.linear.closed_forms`."""

    targets: list[float]
    variances: list[float]


class SpecExecution(TypedDict):
    """How a run is executed: the fields of `sweeps.schema.execution.StageExecution`, and those of a search."""

    accelerator: str
    devices: int
    precision: str
    micro_batch: int | None
    threads: int
    strategy: str
    heldout_every: int | None
    log_every: NotRequired[int | None]
    log: NotRequired[list[str]]
    save_minutes: float
    save_steps: int | None
    keep_states: bool
    compile: NotRequired[str | bool]
    pack: NotRequired[int]
    gpus_per_node: NotRequired[int]
    slurm: dict[str, Any]
    request: NotRequired["Request"]
    """Only of searches."""


class Request(TypedDict):
    """How a search was started; see `launchers.search.request`."""

    launcher: str
    budget: str | None
    device: str
    path: str
    fields: dict[str, Any]


class Loss(TypedDict):
    loss: float
    """In nats per token."""
    tokens: int
    """The number of tokens behind it."""
    corpus: NotRequired["str | Task"]
    """The fingerprint of its corpus; absent in earlier runs, whose stage.json says it."""
    half: NotRequired[str]
    """Which half of the held-out split, if not all of it: tune or report."""
    by: NotRequired["LossByValue"]
    """Only of a corpus with `by`."""


class LossByValue(TypedDict):
    """The loss on a split by the value of a field."""

    fingerprint: str
    """That of the values, as the store has them."""
    values: dict[str, "LossOfValue"]


class LossOfValue(TypedDict):
    loss: float | None
    """In nats per token; None if the split has no predicted token with this value."""
    tokens: int
    """The number of predicted tokens with this value."""


class Metric(TypedDict):
    """A metric of a task: its value and standard error, where the harness could compute them."""

    value: float | None
    stderr: float | None
    higher_is_better: bool


class Measures(TypedDict):
    """measures.json: what an evaluation has measured on a task."""

    metrics: dict[str, Metric]
    """By the name of the metric."""
    documents: int
    """The number of documents that were measured on."""
    shots: int
    """The number of solved examples before each document."""
    harness: str
    """The version of the lm-evaluation-harness."""


class Losses(TypedDict):
    """The content of losses.json."""

    splits: dict[str, Loss]
    steps: int
    trained_tokens: int
    token_digest: NotRequired[str]
    """The data digest; linear stages read no data."""
    features: NotRequired["Features"]
    """Only of linear stages."""
    preferences: NotRequired[dict[str, "PreferencesOfPairs"]]
    """By the fingerprint of a corpus of pairs, what the weights prefer on its held-out pairs."""


class PreferencesOfPairs(TypedDict):
    """What weights prefer on held-out pairs, against a reference."""

    dpo_loss: float
    """The mean DPO loss, in nats per pair."""
    accuracy: float
    """The share of pairs with a margin above 0."""
    margin: float
    """The mean margin in nats: how much more the chosen response has gained in log-probability than the rejected one."""
    pairs: int
    beta: float
    reference: str
    """The key of the run that computed the reference."""


class Features(TypedDict):
    """The strengths of the features of a linear model during a stage."""

    times: list[float]
    strengths: list[list[float]]


class Adapted(TypedDict):
    """The content of adapted.json."""

    micro_batch: int


class GradientProbe(TypedDict):
    """The content of probe-DIGEST.json, a measurement of a run's weights: what of it is read."""

    settings: dict[str, Any]
    share: float


PROBES = "probe-*.json"


def read_probe(path: Path) -> GradientProbe:
    """The content of a probe-DIGEST.json. Raises FileNotFoundError, DamageError."""
    return read_document(path, GradientProbe, "delete this file, and it is measured again")
