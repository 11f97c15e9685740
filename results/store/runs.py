"""The store of runs: one folder for each stage key, readable at any moment, complete and checksummed once done."""

import hashlib
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retain.results.store.lease import LivenessChecker, is_held
from retain.results.store.state import CHANGES, Attempt, Progress, State, state_from
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.base.files import file_system_time, read_json, sync_folder, sync_path, write_json, writing
from retain.sweeps.base.processes import slurm_job

LOSSES = "losses.json"
WEIGHTS = "model/*.safetensors"


@dataclass(frozen=True)
class Run:
    """Anything in the store that takes time: a training stage, a search.

    Its state changes only through the methods of this class; `state.CHANGES` says which change may follow which. Each change
    returns whether it applied. `begin`, `report`, `note`, `stop` and `finish` are for the holder of the run's lease.
    """

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

    @property
    def checkpoint(self) -> Path:
        """The folder of the last checkpoints, until the run is done."""
        return self.folder / "checkpoint"

    def spec(self) -> dict[str, Any]:
        """stage.json: the kind of run, the payload of its key, the evaluation, the execution, versions."""
        return dict(read_json(self.folder / "stage.json"))

    def needs(self) -> list[str]:
        """The keys of the runs that must be done before this one begins."""
        spec = self.spec()
        # Runs registered before this field existed need their parent.
        return list(spec.get("needs") or ([spec["parent"]] if spec["parent"] else []))

    def execution(self) -> dict[str, Any]:
        """How the run is executed: `execution` in stage.json, with the micro-batch of adapted.json if that is smaller."""
        execution: dict[str, Any] = self.spec()["execution"]
        try:
            adapted: dict[str, Any] = read_json(self.folder / "adapted.json")
        except FileNotFoundError:
            return execution
        if (smaller := adapted["micro_batch"]) < (execution["micro_batch"] or smaller + 1):
            execution["micro_batch"] = smaller
        return execution

    def adapt(self, micro_batch: int | None) -> None:
        """Limit the micro-batch (in sequences) from the next attempt on; None restores that of the study."""
        place = self.folder / "adapted.json"
        if micro_batch is None:
            place.unlink(missing_ok=True)
        else:
            write_json(place, {"micro_batch": micro_batch})

    def losses(self) -> dict[str, Any]:
        """losses.json: for each split the loss (nats per token), the tokens behind it and the corpus's fingerprint."""
        return dict(read_json(self.folder / LOSSES))

    def state(self) -> State:
        """The content of state.json; planned for a run that is not registered."""
        try:
            return state_from(read_json(self.folder / "state.json"))
        except FileNotFoundError:
            return State()

    def is_done(self) -> bool:
        return self.state().state == "done"

    def is_running(self, liveness: LivenessChecker | None = None) -> bool:
        """Whether a living process holds the run's lease; state.json is not read. liveness: see `take_lease`."""
        return is_held(self.lease, liveness)

    def queue(self, submission: str | None = None) -> bool:
        """The run waits for a SLURM job: for the job of a new `submission`, or for its own job, which was requeued."""
        if submission is None:
            return self._change("requeue")
        return self._change("queue", submission=submission, reason=None)

    def unqueue(self) -> bool:
        """SLURM has no job for the run."""
        return self._change("unqueue", submission=None)

    def begin(self, pid: int, tokens: int = 0, world: int = 1, device: str | None = None) -> bool:
        """Start a new attempt that resumes at `tokens`; an earlier attempt that never reported its end is closed as lost.

        Returns False if the run was cancelled.
        """
        old, now, job = self.state(), time.time(), slurm_job()
        attempts = tuple(
            attempt
            if attempt.end
            else replace(attempt, end=old.heartbeat or now, tokens=old.progress.tokens, cause="lost")
            for attempt in old.attempts
        )
        if attempts and attempts[-1].tokens < tokens:
            # The process was killed after its last checkpoint and before its next report of progress.
            attempts = (*attempts[:-1], replace(attempts[-1], tokens=tokens))
        attempt = Attempt(now, socket.gethostname(), pid, job, world, tokens_at_start=tokens, device=device)
        return self._change(
            "begin",
            attempts=(*attempts, attempt),
            job_ids=old.job_ids if job is None or job in old.job_ids else (*old.job_ids, job),
            heartbeat=now,
            progress=Progress(tokens, old.progress.total),
            reason=None,
            checksums={},
            weights_freed=False,
        )

    def report(self, progress: Progress) -> None:
        """Report the progress of the current attempt."""
        self._write(replace(self.state(), progress=progress, heartbeat=time.time()))

    def note(self, notes: Sequence[str]) -> None:
        """Add what a reader of the results should know to the current attempt."""
        old = self.state()
        *before, last = old.attempts
        text = "; ".join([*([last.note] if last.note else []), *notes])
        self._write(replace(old, attempts=(*before, replace(last, note=text))))

    def stop(self, cause: str, reason: str | None = None, failure: str | None = None, queued: bool = False) -> bool:
        """End the current attempt, and mark the run as resumable. queued: whether the run's own job resumes it."""
        return self._change("requeue" if queued else "stop", cause, failure, reason=reason)

    def fail(self, reason: str, failure: str | None = None, cause: str = "error") -> bool:
        """End the current attempt, if there is one, and the run with it. failure: the class of the failure."""
        return self._change("fail", cause, failure, reason=reason)

    def cancel(self, reason: str, cause: str | None = None) -> bool:
        """Cancel a run that has not ended. cause: how its attempt ended, if that has ended too."""
        return self._change("cancel", cause, reason=reason)

    def skip(self, reason: str) -> bool:
        """Skip a run whose branch has ended above it."""
        return self._change("skip", reason=reason)

    def retry(self, reopen: bool = False) -> bool:
        """Plan a failed, cancelled or skipped run again; with `reopen` a done one too. Earlier attempts no longer count."""
        forgiven = len(self.state().attempts)
        if not self._change("reopen" if reopen else "retry", reason=None, submission=None, forgiven=forgiven):
            return False
        self.adapt(None)
        return True

    def finish(self, model: Path | None, results: Mapping[str, Any], keep_checkpoints: bool = False) -> None:
        """Make the run done: publish its files, then their checksums and the state.

        model: a folder of the run that is renamed to model/. results: JSON documents by file name. The checkpoints are
        removed afterwards, unless `keep_checkpoints`.
        """
        files = []
        if model is not None:
            sync_folder(model)
            shutil.rmtree(self.model, ignore_errors=True)
            model.rename(self.model)
            files = sorted(path for path in self.model.rglob("*") if path.is_file())
        for name, document in results.items():
            write_json(self.folder / name, document)
            files.append(self.folder / name)
        sync_path(self.folder)
        checksums = {str(path.relative_to(self.folder)): sha256_of(path) for path in files}
        self._change("finish", "finished", checksums=checksums, reason=None)
        if not keep_checkpoints:
            shutil.rmtree(self.checkpoint, ignore_errors=True)

    def free_weights(self, checksums: Mapping[str, str]) -> None:
        """Record that the weights of a done run were freed. checksums: those of the files that are kept."""
        self._write(replace(self.state(), checksums=checksums, weights_freed=True))

    def _change(self, change: str, cause: str | None = None, failure: str | None = None, **fields: Any) -> bool:
        """Apply a change of state if it may follow the present one.

        cause: how the current attempt ended; the attempt is closed even where the change does not apply, as in a run that was
        cancelled meanwhile.
        """
        old = self.state()
        state, follows = CHANGES[change]
        applies = old.state in follows
        if cause is not None and old.attempts and old.attempts[-1].end is None:
            last = replace(old.attempts[-1], end=time.time(), tokens=old.progress.tokens, cause=cause, failure=failure)
            old = replace(old, attempts=(*old.attempts[:-1], last), heartbeat=time.time())
        elif not applies:
            return False
        self._write(replace(old, state=state, **fields) if applies else old)
        return applies

    def _write(self, state: State) -> None:
        write_json(self.folder / "state.json", state.as_json())


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
        """The run whose key begins with `prefix`. Raises StudyError if there is none, or more than one."""
        found = [run for run in self.runs() if run.key.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        if found:
            raise StudyError(f"{prefix}: {len(found)} run keys in {self.root} begin with this; give more digits")
        raise StudyError(f"{prefix}: run not found in {self.root}; give the first digits of a key that status shows")

    def register(self, key: str, spec: Mapping[str, Any]) -> None:
        """Register a run as planned, unless it is registered; `execution` in stage.json follows the latest caller."""
        folder = self.root / key
        folder.mkdir(exist_ok=True)
        run = Run(folder)
        if not (folder / "stage.json").exists() or (run.spec()["execution"] != spec["execution"] and not run.is_done()):
            write_json(folder / "stage.json", spec)
        if not (folder / "state.json").exists():
            run._write(State())

    def states(self, keys: Mapping[str, Any]) -> dict[str, State]:
        return {key: self.run(key).state() for key in keys}


def open_store(root: Path) -> Store:
    """A store to read; it need not exist yet. Raises MissingResourceError if a file is in its place."""
    above = next(place for place in (root, *root.absolute().parents) if place.exists())
    if not above.is_dir():
        raise MissingResourceError(f"--store {root}: {above} is a file; choose another with --store or RETAIN_STORE")
    return Store(root)


def existing_store(root: Path) -> Store:
    """A store that must exist already. Raises MissingResourceError if it does not."""
    if not open_store(root).root.is_dir():
        raise MissingResourceError(f"--store {root}: store not found; train something first, or name another store")
    return Store(root)


def make_store(root: Path) -> Store:
    """A store to write; its folder is created if it is missing. Raises MissingResourceError if it cannot be written."""
    with writing(f"--store {root}", "choose another with --store or RETAIN_STORE"):
        root.mkdir(parents=True, exist_ok=True)
        file_system_time(root)
    return Store(root)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
