"""The store of runs: one folder for each stage key, readable at any moment, complete and checksummed once done."""

import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from retain.results.store.lease import LivenessChecker, is_held
from retain.results.store.state import CHANGES, Adapted, Attempt, Losses, Progress, Spec, State, updated_spec
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError, MissingResourceError, StudyError
from retain.sweeps.base.files import file_system_time, sync_folder, sync_path, write_json, writing
from retain.sweeps.base.notices import notice
from retain.sweeps.base.processes.locks import short_lock
from retain.sweeps.base.processes.names import slurm_job
from retain.sweeps.tree.keys import KEY_LENGTH, canonical, stage_key

Read = TypeVar("Read")
SPEC, STATE, ADAPTED = "stage.json", "state.json", "adapted.json"
LOSSES, MEASURES, LOG, LOCK = "losses.json", "measures.json", "log.txt", ".state.lock"
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
        return self.folder / LOG

    @property
    def lease(self) -> Path:
        return self.folder / "lease.json"

    @property
    def checkpoint(self) -> Path:
        """The folder of the last checkpoints, until the run is done."""
        return self.folder / "checkpoint"

    def spec(self) -> dict[str, Any]:
        """stage.json: the kind of run, the payload of its key, the evaluation, the execution, versions.

        Raises FileNotFoundError if the run is not registered, DamageError if the file is damaged or belongs to another key.
        """
        path, cure = f"{self.folder}/{SPEC}", "delete this file and run its study again, which writes it again"
        try:
            spec: dict[str, Any] = dict(read_document(path, Spec, cure))
        except FileNotFoundError:
            if os.path.lexists(f"{self.folder}/{STATE}"):
                raise DamageError(f"{path} is missing; run its study again, which writes it again") from None
            self._check_folder()
            raise
        try:
            key = stage_key(spec["stage"], spec["parent"], canonical(spec["recipe"]))
        except ValueError:
            key = ""
        if not key == spec["key"] == self.key:
            raise DamageError(f"{path}: the recipe hashes to another key; {cure}")
        return spec

    def needs(self) -> list[str]:
        """The keys of the runs that must be done before this one begins."""
        spec = self.spec()
        # Runs registered before this field existed need their parent.
        return list(spec.get("needs") or ([spec["parent"]] if spec["parent"] else []))

    def execution(self) -> dict[str, Any]:
        """How the run is executed: `execution` in stage.json, with the micro-batch of adapted.json if that is smaller."""
        execution: dict[str, Any] = self.spec()["execution"]
        if (smaller := self.adapted()) is not None and smaller < (execution["micro_batch"] or smaller + 1):
            execution["micro_batch"] = smaller
        return execution

    def adapted(self) -> int | None:
        """The limit of the micro-batch that `adapt` has set; None if there is none. Raises DamageError."""
        cure = "delete this file, and the micro-batch is again that of the study"
        try:
            return read_document(self.folder / ADAPTED, Adapted, cure)["micro_batch"]
        except FileNotFoundError:
            return None

    def adapt(self, micro_batch: int | None) -> None:
        """Limit the micro-batch (in sequences) from the next attempt on; None restores that of the study."""
        if micro_batch is None:
            (self.folder / ADAPTED).unlink(missing_ok=True)
        else:
            write_document(self.folder / ADAPTED, {"micro_batch": micro_batch})

    def losses(self) -> dict[str, Any]:
        """losses.json of a done run: for each split the loss (nats per token) and the tokens behind it. Raises DamageError."""
        path = f"{self.folder}/{LOSSES}"
        cure = f"delete {self.folder} and run its study again, which retrains the run"
        try:
            return dict(read_document(path, Losses, cure))
        except FileNotFoundError:
            raise DamageError(f"{path} is missing; {cure}") from None

    def state(self) -> State:
        """The content of state.json; planned for a run that is not registered. Raises DamageError."""
        path = f"{self.folder}/{STATE}"
        cure = (
            f"delete {self.folder} and run its study again, which retrains the run; "
            "if it has a checkpoint, delete only this file, and the run resumes"
        )
        try:
            return read_document(path, State, cure)
        except FileNotFoundError:
            if os.path.lexists(self.folder / LOSSES) or os.path.lexists(self.model):
                raise DamageError(f"{path} is missing; {cure}") from None
            self._check_folder()
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
        now, job = time.time(), slurm_job()

        def fields(old: State) -> dict[str, Any]:
            attempts = tuple(
                attempt if attempt.end else attempt.ended(old.heartbeat or now, old.progress, "lost")
                for attempt in old.attempts
            )
            if attempts and attempts[-1].tokens < tokens:
                # The process was killed after its last checkpoint and before its next report of progress.
                attempts = (*attempts[:-1], replace(attempts[-1], tokens=tokens))
            attempt = Attempt(now, socket.gethostname(), pid, job, world, tokens_at_start=tokens, device=device)
            return {
                "attempts": (*attempts, attempt),
                "job_ids": old.job_ids if job is None or job in old.job_ids else (*old.job_ids, job),
                "progress": Progress(tokens, old.progress.total),
            }

        return self._change("begin", fields, heartbeat=now, reason=None, checksums={}, weights_freed=False)

    def report(self, progress: Progress) -> None:
        """Report the progress of the current attempt."""
        self._update(lambda old: replace(old, progress=progress, heartbeat=time.time()))

    def note(self, notes: Sequence[str], steps: str | None = None) -> None:
        """Add to the current attempt what a reader of the results should know, and how its steps are computed."""

        def noted(old: State) -> State:
            *before, last = old.attempts
            text = "; ".join([*([last.note] if last.note else []), *notes]) or None
            return replace(old, attempts=(*before, replace(last, note=text, steps=steps or last.steps)))

        self._update(noted)

    def stop(self, cause: str, reason: str | None = None, failure: str | None = None, queued: bool = False) -> bool:
        """End the current attempt, and mark the run as resumable. queued: whether the run's own job resumes it."""
        return self._change("requeue" if queued else "stop", cause=cause, failure=failure, reason=reason)

    def fail(self, reason: str, failure: str | None = None, cause: str = "error") -> bool:
        """End the current attempt, if there is one, and the run with it. failure: the class of the failure."""
        return self._change("fail", cause=cause, failure=failure, reason=reason)

    def cancel(self, reason: str, cause: str | None = None) -> bool:
        """Cancel a run that has not ended. cause: how its attempt ended, if that has ended too."""
        return self._change("cancel", cause=cause, reason=reason)

    def skip(self, reason: str) -> bool:
        """Skip a run whose branch has ended above it."""
        return self._change("skip", reason=reason)

    def retry(self, reopen: bool = False) -> bool:
        """Plan a failed, cancelled or skipped run again; with `reopen` a done one too. Earlier attempts no longer count."""
        change = "reopen" if reopen else "retry"
        if not self._change(change, lambda old: {"forgiven": len(old.attempts)}, reason=None, submission=None):
            return False
        self.adapt(None)
        return True

    def finish(
        self, model: Path | None, results: Mapping[str, Any], keep_checkpoints: bool = False, place: str = "model"
    ) -> None:
        """Make the run done: publish its files, then their checksums and the state.

        model: a folder of the run that is renamed to `place`. results: JSON documents by file name. The checkpoints are
        removed afterwards, unless `keep_checkpoints`.
        """
        files = []
        if model is not None:
            sync_folder(model)
            target = self.folder / place
            shutil.rmtree(target, ignore_errors=True)
            model.rename(target)
            files = sorted(path for path in target.rglob("*") if path.is_file())
        for name, document in results.items():
            write_document(self.folder / name, document)
            files.append(self.folder / name)
        sync_path(self.folder)
        checksums = {str(path.relative_to(self.folder)): sha256_of(path) for path in files}
        self._change("finish", cause="finished", checksums=checksums, reason=None)
        if not keep_checkpoints:
            shutil.rmtree(self.checkpoint, ignore_errors=True)

    def free_weights(self, is_kept: Callable[[str], bool]) -> bool:
        """Record that the weights of a done run are freed. is_kept: whether a file with a checksum, by its path, is kept.

        Returns False if the run is no longer done.
        """

        def freed(old: State) -> State | None:
            kept = {name: checksum for name, checksum in old.checksums.items() if is_kept(name)}
            return replace(old, checksums=kept, weights_freed=True) if old.state == "done" else None

        return self._update(freed)

    def _check_folder(self) -> None:
        """Raise DamageError if something else is in the place of the folder."""
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise DamageError(f"{self.folder} is not a folder; delete it and run its study again")

    def _change(
        self,
        change: str,
        more: Callable[[State], Mapping[str, Any]] = lambda old: {},
        cause: str | None = None,
        failure: str | None = None,
        **fields: Any,
    ) -> bool:
        """Apply a change of state if it may follow the present one.

        more: fields that depend on the present state. cause: how the current attempt ended; the attempt is closed even where
        the change does not apply, as in a run that was cancelled meanwhile.
        """
        target, follows = CHANGES[change]
        applied = False

        def changed(old: State) -> State | None:
            nonlocal applied
            applied = old.state in follows
            if cause is not None and old.attempts and old.attempts[-1].end is None:
                last = old.attempts[-1].ended(time.time(), old.progress, cause, failure)
                old = replace(old, attempts=(*old.attempts[:-1], last), heartbeat=time.time())
            elif not applied:
                return None
            return replace(old, state=target, **fields, **more(old)) if applied else old

        self._update(changed)
        return applied

    def _update(self, change: Callable[[State], State | None]) -> bool:
        """Replace the state by a change of it; None changes nothing. Returns whether it was replaced.

        Every write goes through here: the lock keeps a process from writing over what another has written since it read.
        """
        # A change that does not apply needs no permission to write.
        if change(self.state()) is None:
            return False
        with short_lock(self.folder / LOCK):
            if (state := change(self.state())) is not None:
                write_document(self.folder / STATE, state.as_json())
        return state is not None


@dataclass(frozen=True)
class Store:
    """A directory on a file system that all nodes see."""

    root: Path

    def run(self, key: str) -> Run:
        return Run(self.root / key)

    def runs(self, but: Container[str] = ()) -> list[Run]:
        """Every registered run but these keys, in the order of keys; also those whose files are damaged or may not be read."""
        try:
            names = sorted(os.listdir(self.root))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [self.run(name) for name in names if name not in but and _holds_run(f"{self.root}/{name}", name)]

    def read_all(self, read: Callable[[Run], Read], but: Container[str] = ()) -> dict[str, Read]:
        """What `read` returns for every run but these, by key. Runs that cannot be read are left out, and a notice says so."""
        found, damaged = {}, list[DamageError]()
        for run in self.runs(but):
            try:
                found[run.key] = read(run)
            except DamageError as error:
                damaged.append(error)
        if damaged:
            notice(f"{len(damaged):,} of {len(found) + len(damaged):,} runs are left out: {damaged[0]}")
        return found

    def find(self, prefix: str) -> Run:
        """The run whose key begins with `prefix`. Raises StudyError if there is none, or more than one."""
        if len(found := [run for run in self.runs() if run.key.startswith(prefix)]) == 1:
            return found[0]
        if found:
            raise StudyError(f"{prefix}: {len(found)} run keys in {self.root} begin with this; give more digits")
        raise StudyError(f"{prefix}: run not found in {self.root}; give the key of a run, as retain status shows it")

    def register(self, key: str, spec: Mapping[str, Any]) -> None:
        """Register a run as planned, unless it is registered.

        In stage.json of a run that is not done, `execution`, `reads` and `needs` follow the latest caller, `others` grows by
        what is new, and a run that some caller wants to keep its optimizer keeps it.
        """
        run, path = self.run(key), self.root / key / SPEC
        run.folder.mkdir(exist_ok=True)

        def changed() -> Mapping[str, Any] | None:
            new = updated_spec(run.spec(), spec) if os.path.lexists(path) else spec
            return None if new and new is not spec and run.is_done() else new

        if changed():
            with short_lock(run.folder / LOCK):  # what two studies add at the same time must not be lost
                if new := changed():
                    write_json(path, new)
        if not os.path.lexists(run.folder / STATE):
            run._update(lambda old: old)  # another process may have registered and begun the run meanwhile

    def states(self, keys: Iterable[str]) -> dict[str, State]:
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


def _holds_run(folder: str, name: str) -> bool:
    """Whether a folder of the store is that of a run, as far as its files may be seen, or has the name of one."""
    for file in (SPEC, STATE):
        try:
            os.lstat(f"{folder}/{file}")
            return True
        except PermissionError:
            return True
        except OSError:
            continue
    return re.fullmatch(f"[0-9a-f]{{{KEY_LENGTH}}}", name) is not None and not os.path.isdir(folder)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb", buffering=0) as stream:
        digest = hashlib.sha256(stream.read(1 << 16))  # all of a small file; `file_digest` makes a large buffer first
        while part := stream.read(1 << 18):
            digest.update(part)
    return digest.hexdigest()
