"""Run `execution.on_end`, the user's own command, when a study ends or one of its branches fails, exactly once for each.

    studies/STUDY/on_end/launch.json      the command and the runs of the last `retain run` or `retain submit`
    studies/STUDY/on_end/TOKEN.EVENT      the process that created this file has run the command for the event
    studies/STUDY/on_end/output.log       what the commands printed

Several jobs may see at once that a study has ended. Only one of them creates the file of the event. Another launch has another
token, so it runs the command again.
"""

import contextlib
import functools
import os
import signal
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from retain.launchers.stage.failures import Policy, next_attempt, smaller_batch
from retain.results.store.readiness import written_state
from retain.results.store.runs import Store
from retain.results.store.state import DAMAGED, STOPPED, UNENDED, State
from retain.results.store.study_files import study_folder
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import RetainError
from retain.sweeps.base.notices import notice
from retain.sweeps.base.surroundings import users_environment
from retain.sweeps.tree.key_diff import stage_name

if TYPE_CHECKING:
    from retain.sweeps.tree.tree import Tree  # the import takes a fifth of a second, in every job

LONGEST_S = 60.0
"""How long a command may take before it is killed, so that it cannot keep a job from its end."""
FOLDER, LAUNCH, OUTPUT = "on_end", "launch.json", "output.log"
STUDY, BRANCH = "study", "branch"
MOST_FAILURES = 20
"""Lines about failed runs in a summary."""
LEFT = "left"


class Launch(TypedDict):
    """The content of launch.json."""

    token: str
    command: str
    parents: dict[str, str | None]
    """The parent of each run of the study, by key; None for a root."""
    also: NotRequired[dict[str, list[str]]]
    """The runs besides its parent that a run needs, by key, of those that need any."""
    known: list[str]
    """The runs that had failed before the launch, and that it does not train again."""


def read_launch(path: Path) -> Launch:
    """The content of a launch.json. Raises FileNotFoundError, DamageError."""
    return read_document(path, Launch, "delete this file, and run or submit the study again")


def begin_launch(store: Store, tree: "Tree", command: str | None, known: Collection[str] = ()) -> None:
    """Record that the runs of a tree are launched, so that the process which ends them runs `command`; None: no command.

    known: the failed runs that the launch does not train again. Raises MissingResourceError if the disk is full.
    """
    folder = study_folder(store.root, tree.study) / FOLDER
    if not command:
        (folder / LAUNCH).unlink(missing_ok=True)
        return
    parents = {stage.key: stage.parent for stage in tree.stages.values()}
    also = {stage.key: list(stage.also) for stage in tree.stages.values() if stage.also}
    _write(folder, {"token": "", "command": command, "parents": parents, "also": also, "known": list(known)})


def renew_launches(store: Store, keys: Collection[str]) -> None:
    """Let the launches of these runs run their commands once more, as some of the runs are retried."""
    for folder, launch in _launches(store, keys):
        failed = [key for key in launch["parents"] if written_state(store.run(key)).state == "failed"]
        _write(folder, {**launch, "known": failed})


def tell_failed(store: Store, keys: Collection[str]) -> None:
    """Run the commands of the studies of runs that have just failed for good, while other runs of them go on."""
    with _harmless():
        for folder, launch in _launches(store, keys):
            _tell_branches(store, folder, launch, keys)


def tell_ended(store: Store, keys: Collection[str], policies: Mapping[str, Policy]) -> None:
    """Run the commands of the studies that have ended with these runs, or in which these runs are failed branches.

    policies: what the launcher retries: another run that has failed, and may be retried, has not ended.
    """
    with _harmless():
        for folder, launch in _launches(store, keys):
            read = functools.cache(lambda key: written_state(store.run(key)))
            # Most runs end in the order of the tree, so few are read until one is found that is left.
            goes_on = any(_ending(launch, key, read) == LEFT for key in reversed(launch["parents"]))
            states = {} if goes_on else {key: read(key) for key in launch["parents"]}
            others = {key: state for key, state in states.items() if key not in keys}
            if goes_on or any(_may_be_retried(store, key, state, policies) for key, state in others.items()):
                _tell_branches(store, folder, launch, keys)
            elif _claim(folder, launch, STUDY):
                _run(store, folder, launch, states, {"RETAIN_ENDED": STUDY})


def _tell_branches(store: Store, folder: Path, launch: Launch, keys: Collection[str]) -> None:
    if (folder / f"{launch['token']}.{STUDY}").exists():
        return
    for key in keys:
        if key not in launch["parents"] or key in launch["known"]:
            continue
        if written_state(store.run(key)).state in ("failed", DAMAGED) and _claim(folder, launch, key):
            states = {key: written_state(store.run(key)) for key in launch["parents"]}
            _run(store, folder, launch, states, {"RETAIN_ENDED": BRANCH, "RETAIN_RUN": key})


def _ending(launch: Launch, key: str, read: Callable[[str], State]) -> str:
    """How a run has ended; left if it has not. A run whose branch has ended above it is skipped.

    read: returns the state of a run.
    """
    parents, also = launch["parents"], launch.get("also", {})

    def is_cut(key: str) -> bool:
        """Whether a run that this one needs has ended without being done, or cannot begin."""
        parent = parents[key]
        needs = [*([parent] if parent else []), *also.get(key, [])]
        return any(read(need).state in (*STOPPED, DAMAGED) or is_cut(need) for need in needs)

    state = read(key).state
    if state in UNENDED:
        return "skipped" if is_cut(key) else LEFT
    return state


def _may_be_retried(store: Store, key: str, state: State, policies: Mapping[str, Policy]) -> bool:
    policy = next_attempt(state, policies) if state.state == "failed" else None
    return policy is not None and (not policy.halve or smaller_batch(store.run(key)) is not None)


def _run(store: Store, folder: Path, launch: Launch, states: Mapping[str, State], event: Mapping[str, str]) -> None:
    """Run the command of a launch, for at most LONGEST_S."""
    study, ended = folder.parent.name, [_ending(launch, key, states.__getitem__) for key in states]
    counts = {name: ended.count(name) for name in ("done", "failed", "cancelled", "skipped", LEFT)}
    counts["failed"] += ended.count(DAMAGED)
    variables = {f"RETAIN_{name.upper()}": str(count) for name, count in counts.items()} | {
        "RETAIN_STUDY": study,
        "RETAIN_STORE": str(store.root.absolute()),
        "RETAIN_SUMMARY": _summary(store, study, counts, states, event),
    }
    with (folder / OUTPUT).open("ab") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", launch["command"]],
            env={**users_environment(), **variables, **event},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        code = process.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        notice(f"execution.on_end of {study} was stopped, as it took more than {LONGEST_S:.0f} s")
        return
    finally:
        with contextlib.suppress(ProcessLookupError):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        notice(f"execution.on_end of {study} ended with code {code}; what it printed is in {folder / OUTPUT}")


def _summary(
    store: Store, study: str, counts: Mapping[str, int], states: Mapping[str, State], event: Mapping[str, str]
) -> str:
    """A line about the study or the failed branch, and a line for each failed run."""
    numbers = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    what = f"{study} has ended" if event["RETAIN_ENDED"] == STUDY else f"a branch of {study} has failed"
    failed = [key for key, state in states.items() if state.state in ("failed", DAMAGED)]
    lines = [f"{what}: {numbers}"]
    for key in failed[:MOST_FAILURES]:
        try:
            stage = stage_name(store.run(key).spec())
        except RetainError:
            stage = "run"
        lines.append(f"{stage} {key[:8]} failed: {states[key].reason or 'without a reason'}")
    if len(failed) > MOST_FAILURES:
        lines.append(f"and {len(failed) - MOST_FAILURES} more runs failed")
    return "\n".join(lines)


def _claim(folder: Path, launch: Launch, event: str) -> bool:
    """Whether this process is the first to run the command of a launch for an event; only one is, also on NFS."""
    try:
        os.close(os.open(folder / f"{launch['token']}.{event}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    return True


def _launches(store: Store, keys: Collection[str]) -> Iterator[tuple[Path, Launch]]:
    """This user's launches of a store that have one of these runs, with their folders. Raises DamageError.

    In a shared store, nobody runs a command that somebody else wrote.
    """
    for path in sorted((store.root / "studies").glob(f"*/{FOLDER}/{LAUNCH}")):
        if path.stat().st_uid != os.geteuid():
            continue
        launch = read_launch(path)
        if not launch["parents"].keys().isdisjoint(keys):
            yield path.parent, launch


def _write(folder: Path, launch: Launch) -> None:
    """Write a launch with a new token, and remove what claimed the events of the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    events: Iterable[Path] = [path for path in folder.iterdir() if path.name not in (LAUNCH, OUTPUT)]
    write_document(folder / LAUNCH, {**launch, "token": os.urandom(6).hex()})
    for path in events:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    """Turn whatever prevents a command into a line on standard error: it is no failure of a run."""
    try:
        yield
    except (OSError, RetainError) as error:
        notice(f"execution.on_end was not run: {error}")
