"""Work that is shared out among processes: its results, its errors, and its end."""

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from retain.sweeps.base.processes.names import is_alive, process_start, usable_cores
from retain.sweeps.base.processes.shared_work import shared_out

HEAD = """
import json, os, signal, sys, threading, time
from retain.sweeps.base.errors import DamageError, MissingResourceError
from retain.sweeps.base.processes.shared_work import shared_out
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a script ignores it
"""
several_cores = pytest.mark.skipif(usable_cores() < 2 or sys.platform != "linux", reason="one process works here")


def script(text: str) -> subprocess.Popen[str]:
    """A process of its own: pytest's has threads, so it shares nothing out."""
    command = [sys.executable, "-c", HEAD + textwrap.dedent(text)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def printed(text: str) -> Any:
    """The JSON that a script prints."""
    output, errors = script(text).communicate(timeout=60)
    assert not errors
    return json.loads(output)


@several_cores
def test_parts_are_worked_on_by_processes_of_their_own_and_results_come_in_order() -> None:
    answers = printed(
        """
        answers = shared_out(lambda part: (os.getpid(), list(part)), range(1001), 100)
        print(json.dumps([os.getpid(), answers]))
        """
    )
    here, parts = answers
    assert [one for _, part in parts for one in part] == list(range(1001))
    assert len({pid for pid, _ in parts} | {here}) == len(parts) + 1 >= 3


@several_cores
def test_the_first_error_of_a_part_is_raised_here() -> None:
    said = printed(
        """
        def work(part):
            raise DamageError(f"part of {part[0]}")
        try:
            shared_out(work, range(1000), 100)
        except DamageError as error:
            print(json.dumps(str(error)))
        """
    )
    assert said == "part of 0"


@several_cores
def test_a_process_that_the_system_kills_is_an_error_and_not_a_wait_for_ever() -> None:
    said = printed(
        """
        try:
            shared_out(lambda part: os.kill(os.getpid(), signal.SIGKILL), range(1000), 100)
        except MissingResourceError as error:
            print(json.dumps(str(error)))
        """
    )
    assert said.startswith("the system ended a process of this command")


@several_cores
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_processes_at_once(number: signal.Signals) -> None:
    process = script(
        """
        def end(number, frame):
            raise SystemExit(5)
        signal.signal(signal.SIGTERM, end)
        def work(part):
            os.write(1, f"{os.getpid()}\\n".encode())  # at once: print may write the end of the line apart
            time.sleep(600)
        shared_out(work, range(1000), 500)
        """
    )
    assert process.stdout is not None
    children = [int(process.stdout.readline()) for _ in range(2)]
    started = {pid: process_start(pid) or "" for pid in children}
    process.send_signal(number)
    assert process.wait(timeout=30) == (5 if number == signal.SIGTERM else -number)
    deadline = time.monotonic() + 30
    while any(is_alive(pid, start) for pid, start in started.items()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid, start) for pid, start in started.items())


@pytest.mark.parametrize("count", [0, 1, 999])
def test_few_things_are_worked_on_here(count: int) -> None:
    def work(part: Sequence[int]) -> tuple[int, int]:
        return len(part), threading.get_ident()

    assert shared_out(work, range(count), 500) == [(count, threading.get_ident())]


def test_a_daemon_of_multiprocessing_works_itself() -> None:
    said = printed(
        """
        import multiprocessing
        def parts(count):
            return len(shared_out(len, range(count), 1))
        with multiprocessing.get_context("fork").Pool(1) as pool:
            print(json.dumps(pool.map(parts, [1000])))
        """
    )
    assert said == [1]


def test_a_process_with_threads_works_itself() -> None:
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    try:
        assert shared_out(len, range(1000), 1) == [1000]
    finally:
        ended.set()
        other.join()
