"""The store of runs: one folder a stage key, readable at any moment, complete and checksummed once done."""

import hashlib
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retain.results.store.lease import Witness, is_held
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.base.files import read_json, sync_folder, sync_path, write_json
from retain.sweeps.base.processes import slurm_job

STATES = ("planned", "queued", "running", "done", "failed", "cancelled", "skipped")


@dataclass(frozen=True)
class Attempt:
    """One life of a run. Times are seconds since 1970; `cause` says how it ended, None while it lasts."""

    start: float
    host: str
    pid: int
    job_id: str | None = None
    world: int = 1
    """Processes that trained together."""
    tokens_at_start: int = 0
    """Tokens in the state that it went on from."""
    end: float | None = None
    tokens: int = 0
    """Tokens trained when it ended; what lies beyond the last saved state is trained again."""
    cause: str | None = None
    note: str | None = None
    """What a reader of the results should know: damaged states, another number of processes."""
    failure: str | None = None
    """The class of the failure that ended it; see `retain.launchers.stage.failures`."""
    device: str | None = None
    """What its GPUs call themselves; None on CPUs."""


@dataclass(frozen=True)
class Progress:
    """How far the current attempt is."""

    tokens: int = 0
    total: int = 0
    loss: float | None = None
    """Training loss, nats per token."""
    tokens_per_second: float = 0.0
    phase: str = "training"
    """training, evaluating, or writing the results."""


@dataclass(frozen=True)
class State:
    """The content of state.json."""

    state: str = "planned"
    attempts: tuple[Attempt, ...] = ()
    job_ids: tuple[str, ...] = ()
    """Of the SLURM jobs that have trained it."""
    submission: str | None = None
    """The token of the last submission to SLURM."""
    heartbeat: float | None = None
    progress: Progress = Progress()
    reason: str | None = None
    """One line: why it failed."""
    forgiven: int = 0
    """How many of the attempts came before the last `retain retry`: they count no more against the run."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file of a done run, by its path in the run's folder."""
    weights_freed: bool = False
    """The run is done, and `retain gc --weights` has removed its weights."""

    @property
    def counted_attempts(self) -> tuple[Attempt, ...]:
        """Those since the last `retain retry`."""
        return self.attempts[self.forgiven :]


@dataclass(frozen=True)
class Run:
    """One stage in the store."""

    folder: Path

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def lease(self) -> Path:
        return self.folder / "lease.json"

    def spec(self) -> dict[str, Any]:
        """stage.json: the payload of the key, the evaluation, the execution, versions."""
        return dict(read_json(self.folder / "stage.json"))

    def execution(self) -> dict[str, Any]:
        """How it is to be trained: the part `execution` of stage.json, over it what failures have taught (adapted.json)."""
        execution: dict[str, Any] = self.spec()["execution"]
        try:
            adapted: dict[str, Any] = read_json(self.folder / "adapted.json")
        except FileNotFoundError:
            return execution
        if (smaller := adapted["micro_batch"]) < (execution["micro_batch"] or smaller + 1):
            execution["micro_batch"] = smaller
        return execution

    def adapt(self, micro_batch: int | None) -> None:
        """Take at most so many sequences at a time from the next attempt on; None: as the study says again."""
        place = self.folder / "adapted.json"
        if micro_batch is None:
            place.unlink(missing_ok=True)
        else:
            write_json(place, {"micro_batch": micro_batch})

    def state(self) -> State:
        """state.json; a run that nobody registered is planned."""
        try:
            raw = read_json(self.folder / "state.json")
        except FileNotFoundError:
            return State()
        attempts = tuple(Attempt(**attempt) for attempt in raw.pop("attempts"))
        return State(
            **raw | {"attempts": attempts, "progress": Progress(**raw["progress"]), "job_ids": tuple(raw["job_ids"])}
        )

    def losses(self) -> dict[str, Any]:
        """losses.json: by split, the loss (nats per token), the tokens behind it and the corpus's fingerprint."""
        return dict(read_json(self.folder / "losses.json"))

    def save_state(self, state: State) -> None:
        # Not dataclasses.asdict, which copies every value.
        fields = vars(state) | {"attempts": [vars(attempt) for attempt in state.attempts]}
        write_json(self.folder / "state.json", fields | {"progress": vars(state.progress)})

    def is_done(self) -> bool:
        return self.state().state == "done"

    def is_running(self, witness: Witness | None = None) -> bool:
        """Whether a living process trains it, whatever state.json was last told; see `take_lease` for the witness."""
        return is_held(self.lease, witness)

    @property
    def checkpoint(self) -> Path:
        """The last resumable states, until the run is done."""
        return self.folder / "checkpoint"

    def begin_attempt(self, pid: int, tokens: int = 0, world: int = 1, device: str | None = None) -> State:
        """Enter a new attempt that goes on from `tokens`; one that never said its end is closed as lost.

        For the lease's owner only.
        """
        old = self.state()
        now = time.time()
        attempts = tuple(
            attempt
            if attempt.end
            else replace(attempt, end=old.heartbeat or now, tokens=old.progress.tokens, cause="lost")
            for attempt in old.attempts
        )
        if attempts and attempts[-1].tokens < tokens:
            # It was killed after its last state and before it told how far it was.
            attempts = (*attempts[:-1], replace(attempts[-1], tokens=tokens))
        job = slurm_job()
        attempt = Attempt(now, socket.gethostname(), pid, job, world, tokens_at_start=tokens, device=device)
        progress = Progress(tokens, old.progress.total)
        jobs = old.job_ids if job is None or job in old.job_ids else (*old.job_ids, job)
        state = State("running", (*attempts, attempt), jobs, old.submission, now, progress, forgiven=old.forgiven)
        self.save_state(state)
        return state

    def add_notes(self, notes: Sequence[str]) -> None:
        """Tell of the current attempt what a reader of the results should know."""
        old = self.state()
        *before, last = old.attempts
        told = "; ".join([*([last.note] if last.note else []), *notes])
        self.save_state(replace(old, attempts=(*before, replace(last, note=told))))

    def end_attempt(self, state: str, cause: str, reason: str | None = None, failure: str | None = None) -> None:
        """Close the current attempt and leave the run in `state`; failure: its class, where it failed."""
        old = self.state()
        attempts = old.attempts
        if attempts and attempts[-1].end is None:
            last = replace(attempts[-1], end=time.time(), tokens=old.progress.tokens, cause=cause, failure=failure)
            attempts = (*attempts[:-1], last)
        self.save_state(replace(old, state=state, attempts=attempts, reason=reason, heartbeat=time.time()))

    def finish(self, model: Path, losses: Mapping[str, Any], keep_states: bool = False) -> None:
        """Make the run done: `model`, a folder beside, becomes model/; then losses.json, checksums, and the state.

        The resumable states go afterwards, unless they are to be kept.
        """
        sync_folder(model)
        shutil.rmtree(self.model, ignore_errors=True)
        model.rename(self.model)
        write_json(self.folder / "losses.json", losses)
        sync_path(self.folder)
        files = [*sorted(path for path in self.model.rglob("*") if path.is_file()), self.folder / "losses.json"]
        checksums = {str(path.relative_to(self.folder)): sha256_of(path) for path in files}
        self.save_state(replace(self.state(), checksums=checksums))
        self.end_attempt("done", "finished")
        if not keep_states:
            shutil.rmtree(self.checkpoint, ignore_errors=True)


@dataclass(frozen=True)
class Store:
    """A directory on a file system that all nodes see."""

    root: Path

    def run(self, key: str) -> Run:
        return Run(self.root / key)

    def runs(self) -> list[Run]:
        """Every registered run, in the order of their keys."""
        try:
            names = sorted(os.listdir(self.root))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [self.run(name) for name in names if os.path.exists(f"{self.root}/{name}/stage.json")]

    def find(self, prefix: str) -> Run:
        """The run whose key begins so. Raises StudyError for none or several."""
        found = [run for run in self.runs() if run.key.startswith(prefix)]
        if len(found) != 1:
            several = f"{len(found)} runs begin so; give more of the key" if found else "no such run; see retain status"
            raise StudyError(f"{prefix}: {several} (store {self.root})")
        return found[0]

    def register(self, key: str, spec: Mapping[str, Any]) -> None:
        """Enter a run as planned, unless it is known; its part `execution` follows the latest caller."""
        folder = self.root / key
        folder.mkdir(exist_ok=True)
        run = Run(folder)
        if not (folder / "stage.json").exists() or (run.spec()["execution"] != spec["execution"] and not run.is_done()):
            write_json(folder / "stage.json", spec)
        if not (folder / "state.json").exists():
            run.save_state(State())

    def states(self, keys: Mapping[str, Any]) -> dict[str, State]:
        return {key: self.run(key).state() for key in keys}


def open_store(root: Path) -> Store:
    """A store to read; it need not exist yet. Raises MissingResourceError where there can be none."""
    above = next(place for place in (root, *root.absolute().parents) if place.exists())
    if not above.is_dir():
        raise MissingResourceError(f"--store {root}: {above} is a file; choose another with --store or RETAIN_STORE")
    return Store(root)


def existing_store(root: Path) -> Store:
    """A store of which something is asked that only one with runs can answer. Raises MissingResourceError without it."""
    if not open_store(root).root.is_dir():
        raise MissingResourceError(f"--store {root}: no such store; train something first, or name another")
    return Store(root)


def make_store(root: Path) -> Store:
    """A store to write, made where it is missing. Raises MissingResourceError where it cannot be written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".probe.{socket.gethostname()}.{time.monotonic_ns()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MissingResourceError(
            f"--store {root}: cannot be written ({error.strerror}); choose another with --store or RETAIN_STORE"
        ) from None
    return Store(root)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
