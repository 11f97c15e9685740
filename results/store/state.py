"""The state of a run: what state.json holds, and which change of state may follow which."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

UNENDED = ("planned", "queued", "running")
STOPPED = ("failed", "cancelled", "skipped")
"""States that `retain retry` leads out of."""
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

A run that is cancelled while an attempt computes its last step may still finish: its result is complete. `begin` may follow
`failed` and `skipped`, because `retain run` trains whatever is not done. Only a search is reopened: started again, it tries
more points.
"""


@dataclass(frozen=True)
class Attempt:
    """One life of a run. Times are seconds since 1970; `cause` says how the attempt ended, None while it lasts."""

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
    note: str | None = None
    """What a reader of the results should know: damaged checkpoints, another number of ranks."""
    failure: str | None = None
    """The failure class that ended the attempt; see `launchers.stage.failures`."""
    device: str | None = None
    """The name of its GPUs; None on CPUs."""


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
    """The number of attempts before the last `retain retry`; they no longer count against the run."""
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
    """The state in the fields of a state.json."""
    attempts = tuple(Attempt(**attempt) for attempt in raw["attempts"])
    parsed = {"attempts": attempts, "progress": Progress(**raw["progress"]), "job_ids": tuple(raw["job_ids"])}
    return State(**{**raw, **parsed})
