"""Which process holds a lease, tested with real processes that are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from retain.results.store import lease as module
from retain.results.store.lease import (
    Lease,
    claim_problem,
    held_by,
    is_held,
    read_owner,
    take_lease,
    this_process,
)
from retain.sweeps.base.errors import MissingResourceError
from tests.results.store.processes import HOLDER, next_line, start_python, written_lease

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
"""Takes and releases a lease many times, and logs each."""


def let_race(racer: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """Let a racer begin once it is ready."""
    assert next_line(racer) == "ready"
    assert racer.stdin
    racer.stdin.write("\n")
    racer.stdin.flush()
    return racer


def test_only_one_of_eight_racing_processes_holds_the_lease_at_a_time(path: Path, tmp_path: Path) -> None:
    racers = [start_python(RACER, path, 40, tmp_path / "log") for _ in range(8)]
    for racer in racers:
        let_race(racer)
    assert [racer.wait(timeout=60) for racer in racers] == [0] * 8
    entries = (tmp_path / "log").read_text().splitlines()
    assert len(entries) == 2 * 8 * 40
    for taken, released in zip(entries[::2], entries[1::2], strict=True):
        assert (taken[0], released) == ("+", f"-{taken[1:]}")
    assert [file.name for file in tmp_path.glob("*lease*")] == [f"lease.{8 * 40}.json"]
    assert not is_held(path)


def test_killed_processes_never_leave_two_holders_or_a_lease_that_cannot_be_taken(path: Path, tmp_path: Path) -> None:
    draw, killed = random.Random(0), set()
    racers = [let_race(start_python(RACER, path, 10**6, tmp_path / "log")) for _ in range(4)]
    for _ in range(24):
        time.sleep(draw.uniform(0, 0.06))
        racer = racers.pop(draw.randrange(len(racers)))
        racer.kill()
        racer.wait()
        killed.add(str(racer.pid))
        racers.append(let_race(start_python(RACER, path, 10**6, tmp_path / "log")))
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


def test_exactly_one_of_eight_processes_takes_over_the_lease_of_a_killed_process(path: Path) -> None:
    for _ in range(4):
        holder = start_python(HOLDER, path)
        assert next_line(holder) == "True"
        assert is_held(path)
        holder.kill()
        holder.wait()
        assert not is_held(path)
        successors = [start_python(HOLDER, path) for _ in range(8)]
        assert sorted(next_line(successor) for successor in successors) == ["False"] * 7 + ["True"]
        assert is_held(path)
        for successor in successors:
            successor.communicate("\n", timeout=10)


def test_a_zombie_process_holds_no_lease(path: Path) -> None:
    holder = start_python(HOLDER, path)
    assert next_line(holder) == "True"
    holder.send_signal(signal.SIGKILL)
    while module.process_start(holder.pid) is not None:
        time.sleep(0.01)
    assert Path(f"/proc/{holder.pid}").exists()
    assert not is_held(path)
    holder.communicate()


def test_a_process_with_any_name_holds_its_lease(path: Path) -> None:
    holder = start_python("open('/proc/self/comm', 'wb').write(b'\\xff) Z (')\n" + HOLDER, path)
    assert next_line(holder) == "True"
    assert is_held(path)
    holder.communicate("\n", timeout=10)


def test_a_later_process_with_the_same_pid_is_not_the_owner(path: Path) -> None:
    lease = written_lease(path, this_process())
    assert is_held(path)
    written_lease(path, replace(lease.owner, started="1"), 2)
    assert not is_held(path)
    assert take_lease(path)


def test_a_released_lease_has_no_owner_and_can_be_taken_again(path: Path) -> None:
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


def test_without_a_liveness_checker_the_lease_of_another_machine_is_never_taken_over(path: Path, remote: Lease) -> None:
    os.utime(remote.file, (0, 0))
    assert is_held(path)
    assert take_lease(path) is None


@pytest.mark.parametrize("change", [{"host": "n17"}, {"machine": "another boot"}])
def test_this_machine_is_recognised_by_host_name_and_boot_together(change: dict[str, str], path: Path) -> None:
    written_lease(path, replace(this_process(), pid=2**22 + 1, **change))
    assert is_held(path)


def test_every_heartbeat_is_visible_on_a_file_system_with_time_steps_of_two_seconds(path: Path) -> None:
    lease = take_lease(path)
    assert lease
    seen = []
    for _ in range(5):
        lease.beat()
        seen.append(lease.file.stat().st_mtime_ns // 2_000_000_000)
    assert len(set(seen)) == 5


def test_a_late_claim_with_a_lower_number_does_not_count(path: Path) -> None:
    holder = written_lease(path, this_process(), 7)
    late = written_lease(path, this_process(), 3)
    assert not late.held()
    assert holder.held()
    assert read_owner(path) == holder.owner


def test_a_lease_whose_file_was_removed_is_no_longer_held(path: Path) -> None:
    lease = take_lease(path)
    assert lease
    lease.file.unlink()
    assert not lease.held()
    lease.beat()
    lease.release()
    assert not list(path.parent.iterdir())


def test_an_owner_whose_own_claim_cannot_be_read_still_holds_the_lease(path: Path) -> None:
    """As while a file server answers with errors: nobody else has made a higher claim, so the process must not end."""
    lease = written_lease(path, this_process(), 1)
    lease.file.write_text("{")
    assert lease.held()
    written_lease(path, this_process(), lease.number + 1).file.write_text("{")
    assert not lease.held()


def test_a_lease_can_be_read_at_any_moment_while_owners_race(path: Path, tmp_path: Path) -> None:
    racers = [let_race(start_python(RACER, path, 150, tmp_path / "log")) for _ in range(2)]
    seen: set[int | None] = set()
    while any(racer.poll() is None for racer in racers):
        owner = read_owner(path)
        seen.add(owner and owner.pid)
        is_held(path)
    assert [racer.returncode for racer in racers] == [0, 0]
    assert seen - {None} <= {racer.pid for racer in racers}
    assert seen - {None}


def test_a_claim_that_was_made_though_the_file_system_did_not_confirm_it_is_the_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS repeats a request whose answer was lost, and then says that the name exists."""
    link = module._link
    monkeypatch.setattr(module, "_link", lambda source, target: link(source, target) and False)
    lease = take_lease(path)
    assert lease
    assert lease.held()


def test_nobody_holds_a_lease_that_was_never_taken(path: Path) -> None:
    assert not is_held(path)
    assert read_owner(path) is None
    assert claim_problem(path) is None
    assert "releasing" in held_by(path)


SEES_LEASE = """
import os, subprocess, sys
from pathlib import Path
from retain.results.store.lease import held_by, is_held, take_lease
subprocess.run(["mount", "-t", "proc", "-o", f"hidepid={sys.argv[2]}", "proc", "/proc"], check=True)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
path = Path(sys.argv[1])
print(is_held(path), take_lease(path), os.path.exists(f"/proc/{sys.argv[3]}/stat"), flush=True)
"""


@pytest.mark.parametrize("hidepid", [1, 2])
def test_an_owner_that_proc_hides_from_us_is_not_taken_for_dead(hidepid: int) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        why = "only root may mount /proc again"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this: {why}")
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="retain-shared-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        lease = take_lease(folder / "lease.json")
        assert lease is not None
        command = [
            "unshare",
            "-m",
            sys.executable,
            "-c",
            SEES_LEASE,
            folder / "lease.json",
            str(hidepid),
            str(os.getpid()),
        ]
        seen = subprocess.run(command, capture_output=True, text=True, check=False)
        assert seen.stdout.split()[:2] == ["True", "None"], seen.stderr


@pytest.mark.parametrize("content", ["", "{", "null", '{"host": 1}'])
def test_who_waits_for_a_lease_says_for_whose_and_until_when(content: str, path: Path, remote: Lease) -> None:
    assert f"{remote.owner.pid} on {remote.owner.host} (job 17) holds the lease: waiting until" in held_by(path)
    assert held_by(path).endswith("for 10 minutes")
    remote.file.write_text(content)
    if content:
        assert f"{remote.file} cannot be read" in held_by(path)
        assert "delete this file" in held_by(path)
        assert str(remote.file) in (claim_problem(path) or "")
    else:
        assert "releasing" in held_by(path)


def test_a_lease_names_the_slurm_job_of_its_owner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    lease = take_lease(path)
    assert lease
    assert json.loads(lease.file.read_text())["job_id"] == "4711"


def test_the_error_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match="absent: cannot be written"):
        take_lease(tmp_path / "absent" / "lease.json")


def test_a_lease_is_kept_while_its_process_is_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may be a relative path, and the start of Ray changes the folder for longer than a heartbeat."""
    monkeypatch.chdir(tmp_path)
    lease = take_lease(Path("lease.json"))
    assert lease
    monkeypatch.chdir("/")
    assert lease.held()
    lease.beat()
    lease.release()
    assert not is_held(tmp_path / "lease.json")
