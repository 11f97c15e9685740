"""The state of a run: what state.json holds, and which change of state may follow which."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

UNENDED = ("planned", "queued", "running")
STOPPED = ("failed", "cancelled", "skipped")
"""States of runs that `retain retry` plans again."""
ENDED = ("done", *STOPPED)
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
    "finish": ("done", ("running", "cancelled")),
    "retry": ("planned", STOPPED),
    "reopen": ("planned", ENDED),
}
"""Each change of state: the state it leads to, and the states it may follow.

`finish` may follow `cancelled`: a run that is cancelled during its last step has a complete result. `begin` may follow
`failed` and `skipped`: `retain run` trains every stage that is not done. `reopen` is for searches, which try more points when
they are started again.
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


@dataclass(frozen=True)
class State:
    """The content of state.json."""

    state: str = "planned"
    attempts: tuple[Attempt, ...] = ()
    job_ids: tuple[str, ...] = ()
    """The SLURM jobs that have trained the run."""
    submission: str | None = None
    """The token of the last submission to SLURM."""
    heartbeat: float | None = None
    """When the last progress was reported, in seconds since 1970."""
    progress: Progress = Progress()
    reason: str | None = None
    """One line: why the run failed, was cancelled or was skipped."""
    forgiven: int = 0
    """The number of attempts before the last `retain retry`, which the limits on retries no longer count."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file of a done run, by its path in the run's folder."""
    weights_freed: bool = False
    """Whether `retain gc --weights` has removed the weights of the done run."""

    @property
    def counted_attempts(self) -> tuple[Attempt, ...]:
        """The attempts since the last `retain retry`."""
        return self.attempts[self.forgiven :]

    def as_json(self) -> dict[str, Any]:
        """The fields of state.json."""
        # dataclasses.asdict would copy every value.
        fields = vars(self) | {"attempts": [vars(attempt) for attempt in self.attempts]}
        return fields | {"progress": vars(self.progress)}


def state_from(raw: Mapping[str, Any]) -> State:
    """The state that the fields of a state.json describe."""
    attempts = tuple(Attempt(**attempt) for attempt in raw["attempts"])
    parsed = {"attempts": attempts, "progress": Progress(**raw["progress"]), "job_ids": tuple(raw["job_ids"])}
    return State(**{**raw, **parsed})
