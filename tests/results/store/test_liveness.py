"""When the owner of a lease on another machine counts as dead, by a clock that only the test moves."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from retain.results.store import lease as module
from retain.results.store.lease import (
    SILENCE_S,
    Lease,
    LivenessChecker,
    Owner,
    is_held,
    take_lease,
    wait_for_lease,
)


@dataclass
class Clock:
    """The clock of those who watch leases; only the test moves it."""

    now: float = 0.0

    def until_dead(self, path: Path, checker: LivenessChecker, every_s: float = 5.0) -> float:
        """Poll a lease until its owner counts as dead; the seconds since the first poll."""
        began = self.now
        while is_held(path, checker):
            self.now += every_s
            assert self.now - began < 10 * SILENCE_S
        return self.now - began


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=time.sleep))
    return clock


def test_a_remote_owner_counts_as_dead_only_after_the_checker_itself_has_seen_enough_silence(
    path: Path, remote: Lease, clock: Clock
) -> None:
    checker = LivenessChecker()
    assert clock.until_dead(path, checker) == SILENCE_S
    assert take_lease(path, LivenessChecker()) is None
    assert take_lease(path, checker)
    assert not remote.held()


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
def test_a_jump_of_the_clock_neither_kills_an_owner_nor_keeps_it_alive(
    jump_s: int, path: Path, remote: Lease, clock: Clock
) -> None:
    there = time.time() + jump_s
    os.utime(remote.file, (there, there))
    checker = LivenessChecker()
    for _ in range(300):
        remote.beat()
        assert is_held(path, checker)
        clock.now += 5
    assert clock.until_dead(path, checker) == SILENCE_S - 5


def test_of_the_time_in_which_a_watcher_slept_only_a_tenth_of_the_silence_counts(
    path: Path, remote: Lease, clock: Clock
) -> None:
    assert clock.until_dead(path, LivenessChecker(), every_s=SILENCE_S / 2) == 10 * SILENCE_S / 2


def test_a_tenth_of_the_silence_is_enough_if_the_scheduler_says_that_the_job_has_ended(
    path: Path, remote: Lease, clock: Clock
) -> None:
    asked: list[str | None] = []

    def has_ended(owner: Owner) -> bool:
        asked.append(owner.job_id)
        return True

    assert clock.until_dead(path, LivenessChecker(has_ended)) == SILENCE_S / 10
    assert set(asked) == {"17"}


def test_no_silence_is_enough_if_the_scheduler_says_that_the_job_is_alive(
    path: Path, remote: Lease, clock: Clock
) -> None:
    checker = LivenessChecker(lambda owner: False)
    for _ in range(300):
        assert is_held(path, checker)
        clock.now += 5


def test_if_the_scheduler_does_not_know_the_job_all_of_the_silence_must_pass(
    path: Path, remote: Lease, clock: Clock
) -> None:
    assert clock.until_dead(path, LivenessChecker(lambda owner: None)) == SILENCE_S


def test_an_owner_that_lost_its_lease_notices_and_cannot_harm_the_new_owner(
    path: Path, remote: Lease, clock: Clock
) -> None:
    checker = LivenessChecker()
    clock.until_dead(path, checker)
    new = take_lease(path, checker)
    assert new
    assert not remote.held()
    remote.beat()
    remote.release()
    assert new.held()
    assert is_held(path)


@pytest.mark.parametrize(
    "damage",
    [lambda claim: claim.write_text("{"), lambda claim: claim.symlink_to(claim.name)],
    ids=["damaged", "may not be read"],
)
def test_a_claim_that_cannot_be_read_counts_as_that_of_another_machine(
    damage: Callable[[Path], object], path: Path, clock: Clock
) -> None:
    damage(path.with_name("lease.1.json"))
    checker = LivenessChecker()
    assert is_held(path)
    assert clock.until_dead(path, checker) == SILENCE_S
    assert take_lease(path, checker)


def test_who_waits_gets_the_lease_once_it_is_released_and_nothing_once_its_patience_is_over(
    path: Path, clock: Clock
) -> None:
    lease, seen = take_lease(path), list[Owner | None]()
    assert lease

    def poll(owner: Owner | None) -> None:
        seen.append(owner)
        clock.now += 5
        if len(seen) == 4:
            lease.release()

    assert wait_for_lease(path, None, lambda owner: 14, poll, every_s=0) is None
    assert seen == [lease.owner] * 3
    won = wait_for_lease(path, None, lambda owner: 14, poll, every_s=0)
    assert won
    assert won.held()
