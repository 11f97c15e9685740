"""The command line as a user calls it, in a process of its own or in this one."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from retain.launchers.cli.app import main
from retain.launchers.local.devices import local_slots
from retain.launchers.local.launcher import Disturb, Watch, WorkerGroup, train
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register
from retain.results.store.runs import Run, Store
from retain.results.store.state import State

COMMAND = [sys.executable, "-m", "retain.launchers.cli.app"]
OF_ITS_OWN = ("search", "submit")
"""Verbs that need a process of their own: Ray and a job keep the environment in which they are started."""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without a store of the developer's own, and what is added to it."""
    return {name: value for name, value in os.environ.items() if name != "RETAIN_STORE"} | dict(more or {})


def retain(
    *arguments: str | Path, code: int | None = 0, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one verb to its end; `code` is the exit code that it must have, `more` is added to the environment."""
    command = [*COMMAND, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment(more), timeout=600, check=False)
    except subprocess.TimeoutExpired as late:
        said = (late.stderr or b"").decode(errors="replace")
        raise AssertionError(f"{command} was not done after {late.timeout:.0f} s; it had said:\n{said}") from None
    assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def retain_here(
    *arguments: str | Path, code: int | None = 0, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one verb as `retain` does, but in this process, where imports are paid once for all tests.

    For what a verb says and does. A signal, a stream, or a variable that a library reads when it is imported needs `retain`.
    """
    words, out, err = list(map(str, arguments)), io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.delenv("RETAIN_STORE", raising=False)
        for name, value in (more or {}).items():
            patch.setenv(name, value)
        found = main(words)
    done = subprocess.CompletedProcess(words, found, out.getvalue(), err.getvalue())
    assert code is None or found == code, f"exit code {found}\n{done.stdout}\n{done.stderr}"
    return done


def retain_json(*arguments: str | Path, code: int = 0, more: Mapping[str, str] | None = None) -> Any:
    """The document that a verb prints with --json: in this process, unless the verb needs one of its own."""
    run = retain_here if more is None and arguments[0] not in OF_ITS_OWN else retain
    return json.loads(run(*arguments, "--json", code=code, more=more).stdout)


def start(*arguments: str | Path, more: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start one verb in a session of its own, as from a terminal, also where these tests run with nohup."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(more),
        start_new_session=True,
        preexec_fn=_answer_a_terminal,
    )


def _answer_a_terminal() -> None:
    """Let this process hear Ctrl-C, and that its terminal closes."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 300
) -> None:
    """Wait for a condition; fails with the output of the process if that ends first."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited for {seconds} s")
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended first: {process.communicate()}")
        time.sleep(0.05)


def pid_of_dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def stages_of(store: Path) -> list[Run]:
    """The training stages of a store: its runs without searches."""
    return [run for run in Store(store).runs() if run.spec()["stage"] != "search"]


def weights(store: Path) -> dict[str, bytes]:
    """The final weights of every run of a store, as bytes, by stage key and tensor."""
    return {
        f"{file.parent.parent.name} {name}": tensor.tobytes()
        for file in sorted(store.glob("*/model/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def losses(store: Path) -> dict[str, Any]:
    """losses.json of every run of a store, by stage key."""
    return {file.parent.name: json.loads(file.read_text()) for file in sorted(store.glob("*/losses.json"))}


def copied_runs(store: Path, to: Path) -> Path:
    """Copy a store's data and runs, for another study file of the same study: the results of one belong to its file."""
    return Path(shutil.copytree(store, to, symlinks=True, ignore=shutil.ignore_patterns("studies")))


def train_here(
    study: Path, store: Path, *overrides: str, watch: Watch = lambda _: None, disturb: Disturb | None = None
) -> dict[str, State]:
    """Train what is missing as `retain run` does, from this process: its fork server pays the imports once for all tests."""
    opened = prepare_study(str(study), overrides, store)
    register(opened.tree, opened.file, opened.facts, opened.store)
    slots = local_slots(opened.file.study.execution, opened.file.study.stages)
    return train(opened.tree, opened.store, slots, watch, disturb)


def stop_here(study: Path, store: Path, *overrides: str, checkpoints: int = 1) -> Path:
    """Train until that many checkpoints are saved, and then stop as Ctrl-C does. Returns the store."""

    def watch(_: Mapping[str, State]) -> None:
        if len(list(store.glob("*/checkpoint/step-*"))) >= checkpoints:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_here(study, store, *overrides, watch=watch)
    return store


def train_killed(study: Path, store: Path, *overrides: str) -> None:
    """Train, with KILL for the processes of each run once it has saved another checkpoint than it had; all runs resume."""
    before, killed = set(store.glob("*/checkpoint/step-*")), set[str]()

    def disturb(groups: Mapping[str, WorkerGroup]) -> None:
        for key in groups.keys() - killed:
            if set(store.glob(f"{key}/checkpoint/step-*")) - before:
                groups[key].kill()
                killed.add(key)
        time.sleep(0.01)

    train_here(study, store, *overrides, disturb=disturb)
    attempts = [run.state().attempts for run in stages_of(store)]
    assert any(len(own) > 1 and own[-1].tokens_at_start > 0 for own in attempts), attempts
