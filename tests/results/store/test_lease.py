"""Who holds a lease: decided between real processes, some of them killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest

from retain.results.store import lease as module
from retain.results.store.lease import Lease, LivenessChecker, Owner, is_held, read_owner, take_lease, this_process
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.files import write_json

SILENCE_S = 0.4

RACER = """
import os, sys, time
from pathlib import Path
from retain.results.store.lease import take_lease
path, rounds, log = Path(sys.argv[1]), int(sys.argv[2]), os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
print("ready", flush=True)
sys.stdin.readline()
won = 0
while won < rounds:
    lease = take_lease(path)
    if lease is None:
        continue
    os.write(log, f"+{os.getpid()}\\n".encode())
    assert lease.held()
    os.write(log, f"-{os.getpid()}\\n".encode())
    lease.release()
    won += 1
"""

HOLDER = """
import sys, time
from pathlib import Path
from retain.results.store.lease import take_lease
lease = take_lease(Path(sys.argv[1]))
print(lease is not None, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lease.json"


@pytest.fixture
def elsewhere(path: Path) -> Lease:
    """A lease that a process of another machine holds."""
    return foreign_lease(path, replace(this_process(), machine="another boot", job_id="17"))


def foreign_lease(path: Path, owner: Owner, number: int = 1) -> Lease:
    lease = Lease(path, number, owner)
    write_json(lease.file, asdict(owner))
    return lease


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that says a line once it is ready, and goes on when it is told a line."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def go(racer: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """Let a racer begin."""
    assert line(racer) == "ready"
    assert racer.stdin
    racer.stdin.write("\n")
    racer.stdin.flush()
    return racer


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_of_eight_processes_that_race_only_one_holds_the_lease_at_a_time(path: Path, tmp_path: Path) -> None:
    racers = [started(RACER, path, 40, tmp_path / "log") for _ in range(8)]
    for racer in racers:
        go(racer)
    assert [racer.wait(timeout=60) for racer in racers] == [0] * 8
    entries = (tmp_path / "log").read_text().splitlines()
    assert len(entries) == 2 * 8 * 40
    for taken, given in zip(entries[::2], entries[1::2], strict=True):
        assert (taken[0], given) == ("+", f"-{taken[1:]}")
    assert [file.name for file in tmp_path.glob("*lease*")] == [f"lease.{8 * 40}.json"]
    assert not is_held(path)


def test_processes_killed_at_any_moment_never_leave_two_holders_nor_a_lease_that_nobody_can_take(
    path: Path, tmp_path: Path
) -> None:
    draw, killed = random.Random(0), set()
    racers = [go(started(RACER, path, 10**6, tmp_path / "log")) for _ in range(4)]
    for _ in range(24):
        time.sleep(draw.uniform(0, 0.06))
        racer = racers.pop(draw.randrange(len(racers)))
        racer.kill()
        racer.wait()
        killed.add(str(racer.pid))
        racers.append(go(started(RACER, path, 10**6, tmp_path / "log")))
    for racer in racers:
        racer.kill()
        racer.wait()
        killed.add(str(racer.pid))
    entries = (tmp_path / "log").read_text().splitlines()
    assert len(entries) > 200
    for before, after in pairwise(entries):
        if before[0] == "+":
            assert after == f"-{before[1:]}" or (after[0] == "+" and before[1:] in killed)
            killed.discard(before[1:] if after[0] == "+" else "")
        else:
            assert after[0] == "+"
    lease = take_lease(path)
    assert lease
    assert lease.held()


def test_the_lease_of_a_killed_process_goes_to_exactly_one_of_eight(path: Path) -> None:
    for _ in range(4):
        holder = started(HOLDER, path)
        assert line(holder) == "True"
        assert is_held(path)
        holder.kill()
        holder.wait()
        assert not is_held(path)
        heirs = [started(HOLDER, path) for _ in range(8)]
        assert sorted(line(heir) for heir in heirs) == ["False"] * 7 + ["True"]
        assert is_held(path)
        for heir in heirs:
            heir.communicate("\n", timeout=10)


def test_a_killed_process_that_nobody_has_waited_for_holds_nothing(path: Path) -> None:
    holder = started(HOLDER, path)
    assert line(holder) == "True"
    holder.send_signal(signal.SIGKILL)
    while module.process_start(holder.pid) is not None:
        time.sleep(0.01)
    assert Path(f"/proc/{holder.pid}").exists()
    assert not is_held(path)
    holder.communicate()


def test_a_later_process_with_the_same_number_is_not_the_owner(path: Path) -> None:
    lease = foreign_lease(path, this_process())
    assert is_held(path)
    foreign_lease(path, replace(lease.owner, started="1"), 2)
    assert not is_held(path)
    assert take_lease(path)


def test_what_is_released_can_be_taken_again_and_says_nobody_holds_it(path: Path) -> None:
    lease = take_lease(path)
    assert lease
    assert take_lease(path) is None
    assert read_owner(path) == lease.owner
    lease.release()
    assert not lease.held()
    assert not is_held(path)
    assert read_owner(path) is None
    again = take_lease(path)
    assert again
    lease.release()
    lease.beat()
    assert again.held()
    assert [file.name for file in path.parent.iterdir()] == [again.file.name]


def test_without_a_witness_the_lease_of_another_machine_is_respected_for_ever(path: Path, elsewhere: Lease) -> None:
    os.utime(elsewhere.file, (0, 0))
    assert is_held(path)
    assert take_lease(path) is None


@pytest.mark.parametrize("change", [{"host": "n17"}, {"machine": "another boot"}])
def test_a_machine_of_the_same_name_or_the_same_boot_alone_is_another_machine(
    change: dict[str, str], path: Path
) -> None:
    foreign_lease(path, replace(this_process(), pid=2**22 + 1, **change))
    assert is_held(path)


def test_a_witness_believes_in_death_only_after_it_has_seen_silence_for_long_enough(
    path: Path, elsewhere: Lease
) -> None:
    witness, begin = LivenessChecker(silence_s=SILENCE_S), time.monotonic()
    while is_held(path, witness):
        time.sleep(SILENCE_S / 40)
        assert time.monotonic() - begin < 20
    assert time.monotonic() - begin >= SILENCE_S
    assert take_lease(path, LivenessChecker(silence_s=SILENCE_S)) is None
    assert take_lease(path, witness)
    assert not elsewhere.held()


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
def test_a_clock_that_jumps_neither_kills_an_owner_nor_keeps_it_alive(
    jump_s: int, path: Path, elsewhere: Lease
) -> None:
    there = time.time() + jump_s
    os.utime(elsewhere.file, (there, there))
    witness = LivenessChecker(silence_s=SILENCE_S)
    end = time.monotonic() + 2 * SILENCE_S
    while time.monotonic() < end:
        elsewhere.beat()
        assert is_held(path, witness)
        time.sleep(SILENCE_S / 40)
    while is_held(path, witness):
        time.sleep(SILENCE_S / 40)
        assert time.monotonic() < end + 20


def test_every_beat_is_visible_even_to_a_file_system_with_steps_of_two_seconds(path: Path) -> None:
    lease = take_lease(path)
    assert lease
    seen = []
    for _ in range(5):
        lease.beat()
        seen.append(lease.file.stat().st_mtime_ns // 2_000_000_000)
    assert len(set(seen)) == 5


def test_a_watcher_that_slept_does_not_take_its_sleep_for_silence(path: Path, elsewhere: Lease) -> None:
    witness = LivenessChecker(silence_s=SILENCE_S)
    assert is_held(path, witness)
    time.sleep(1.5 * SILENCE_S)
    assert is_held(path, witness)


def test_a_tenth_of_the_silence_is_enough_where_the_scheduler_says_that_the_job_is_gone(
    path: Path, elsewhere: Lease
) -> None:
    asked: list[str | None] = []

    def gone(owner: Owner) -> bool:
        asked.append(owner.job_id)
        return True

    witness = LivenessChecker(gone, silence_s=20 * SILENCE_S)
    assert is_held(path, witness)
    begin = time.monotonic()
    while is_held(path, witness):
        time.sleep(0.02)
    assert 2 * SILENCE_S <= time.monotonic() - begin < 10 * SILENCE_S
    assert set(asked) == {"17"}


def test_no_silence_is_enough_where_the_scheduler_says_that_the_job_lives(path: Path, elsewhere: Lease) -> None:
    witness = LivenessChecker(lambda owner: False, silence_s=SILENCE_S / 10)
    end = time.monotonic() + SILENCE_S
    while time.monotonic() < end:
        assert is_held(path, witness)
        time.sleep(SILENCE_S / 100)


def test_a_late_owner_notices_and_neither_its_beat_nor_its_release_hurts_the_new_one(
    path: Path, elsewhere: Lease
) -> None:
    witness = LivenessChecker(silence_s=SILENCE_S / 4)
    while is_held(path, witness):
        time.sleep(SILENCE_S / 100)
    new = take_lease(path, witness)
    assert new
    assert not elsewhere.held()
    elsewhere.beat()
    elsewhere.release()
    assert new.held()
    assert is_held(path)


def test_a_claim_that_comes_late_under_a_number_that_was_passed_gives_way(path: Path) -> None:
    holder = foreign_lease(path, this_process(), 7)
    late = foreign_lease(path, this_process(), 3)
    assert not late.held()
    assert holder.held()
    assert read_owner(path) == holder.owner


def test_a_lease_whose_file_is_removed_under_its_owner_is_no_longer_held(path: Path) -> None:
    lease = take_lease(path)
    assert lease
    lease.file.unlink()
    assert not lease.held()
    lease.beat()
    lease.release()
    assert not list(path.parent.iterdir())


def test_readers_beside_racing_owners_never_stumble_over_a_file_that_vanishes(path: Path, tmp_path: Path) -> None:
    racers = [go(started(RACER, path, 150, tmp_path / "log")) for _ in range(2)]
    seen: set[int | None] = set()
    while any(racer.poll() is None for racer in racers):
        owner = read_owner(path)
        seen.add(owner and owner.pid)
        is_held(path)
    assert [racer.returncode for racer in racers] == [0, 0]
    assert seen - {None} <= {racer.pid for racer in racers}
    assert seen - {None}


def test_a_lease_that_cannot_be_read_is_another_machines_until_it_has_been_silent(path: Path) -> None:
    path.with_name("lease.1.json").write_text("{")
    witness = LivenessChecker(silence_s=SILENCE_S / 4)
    assert is_held(path)
    while is_held(path, witness):
        time.sleep(SILENCE_S / 100)
    assert take_lease(path, witness)


def test_the_owner_says_its_job(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    lease = take_lease(path)
    assert lease
    assert json.loads(lease.file.read_text())["job_id"] == "4711"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match="absent: cannot be written"):
        take_lease(tmp_path / "absent" / "lease.json")
