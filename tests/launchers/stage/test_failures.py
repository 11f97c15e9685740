"""What failures are called, and what follows from each."""

import errno
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from retain.launchers.jobs.branches import skip_blocked
from retain.launchers.jobs.dead_attempts import FIRST_LINE, explain_deaths, is_dead, settle_death
from retain.launchers.jobs.sbatch import outside_job
from retain.launchers.jobs.submissions import submission_folder
from retain.launchers.stage.failures import (
    BUG,
    DISK,
    DIVERGED,
    GPU_MEMORY,
    HOST_MEMORY,
    LOCAL,
    NODE,
    ON_SLURM,
    RECIPE,
    classify,
    classify_death,
    classify_text,
    halved,
    next_attempt,
    prepare_retry,
)
from retain.launchers.stage.rank_failures import agree_on_failure, clear_rank_causes, described_failure
from retain.launchers.stage.ranks import Ranks
from retain.results.store.disk import check_room
from retain.results.store.lease import take_lease
from retain.results.store.runs import Run, Store
from retain.results.store.state import Attempt, State
from retain.sweeps.base.errors import MissingResourceError, NoRoomError, StageFailedError, StudyError
from retain.sweeps.schema.execution import StageExecution
from retain.sweeps.tree.keys import canonical, stage_key
from tests.results.runs import put_state
from tests.retain import losses, train_here
from tests.studies import tiny_study

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:37800: Connection reset by peer."
)
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, "
MESSAGES = {
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB": GPU_MEMORY,
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call": GPU_MEMORY,
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": GPU_MEMORY,
    NCCL + "unhandled cuda error, NCCL version 2.21.5\nLast error:\nCuda failure 2 'out of memory'": GPU_MEMORY,
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000000 bytes. Error code 12 (Cannot allocate memory)": HOST_MEMORY,
    "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=14604003.0 cgroup. Some of your processes may have been "
    "killed by the cgroup out-of-memory handler.": HOST_MEMORY,
    "slurmstepd: error: Detected 1 oom_kill event in StepId=14604003.batch.": HOST_MEMORY,
    "srun: error: o0616: task 0: Out Of Memory": HOST_MEMORY,
    "DataLoader worker (pid 4016) is killed by signal: Killed.": HOST_MEMORY,
    GLOO: NODE,
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2983": NODE,
    "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation "
    "to complete": NODE,
    "The client socket has timed out after 5000ms while trying to connect to (127.0.0.1, 1).": NODE,
    NCCL + "remote process exited or there was a network error, NCCL version 2.21.5\nncclRemoteError: A call failed "
    "possibly due to a network error or a remote process exiting prematurely.\nLast error:\nsocketProgressOpt: Call to "
    "recv from 172.16.0.4<33759> failed : Connection reset by peer": NODE,
    NCCL + "internal error, NCCL version 2.14.3\nncclInternalError: Internal check failed.\nLast error:\nNet : "
    "Connection closed by remote peer user<50260>": NODE,
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=6, OpType=ALLREDUCE) ran for 1800": NODE,
    "CUDA error: uncorrectable ECC error encountered": NODE,
    "CUDA error: unspecified launch failure": NODE,
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable": NODE,
    NCCL + "invalid usage, NCCL version 2.17.1\nncclInvalidUsage: This usually reflects invalid usage": BUG,
    "CUDA error: device-side assert triggered": None,
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)": None,
    "[Errno 28] No space left on device": DISK,
    "[Errno 122] Disk quota exceeded: 'model.partial'": DISK,
}


@pytest.mark.parametrize(("message", "kind"), MESSAGES.items())
def test_messages_tell_their_class(message: str, kind: str | None) -> None:
    assert classify_text(message) == kind
    assert classify(RuntimeError(message)) == (kind or BUG)
    if kind:
        assert classify_death(1, "FAILED", f"Traceback (most recent call last):\nRuntimeError: {message}\n") == kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("Allocation on device"), GPU_MEMORY),
        (MemoryError(), HOST_MEMORY),
        (OSError(errno.ENOMEM, "fork"), HOST_MEMORY),
        (OSError(errno.ENOSPC, "write"), DISK),
        (OSError(errno.EDQUOT, "write"), DISK),
        (NoRoomError("9 GB are needed and 1 GB are free"), DISK),
        (OSError(errno.ESTALE, "read"), NODE),
        (OSError(errno.EIO, "read"), NODE),
        (ConnectionResetError(), NODE),
        (TimeoutError("the first rank has not begun"), NODE),
        (distributed.DistNetworkError("something"), NODE),
        (StageFailedError("diverged: the training loss is nan at step 3", DIVERGED), DIVERGED),
        (StageFailedError("its parent is not done"), RECIPE),
        (StudyError("batch: must be positive"), RECIPE),
        (MissingResourceError("out of memory is only a word here"), RECIPE),
        (FileNotFoundError(errno.ENOENT, "gone"), RECIPE),
        (ValueError("shapes"), BUG),
        (KeyError("name"), BUG),
    ],
)
def test_exceptions_tell_their_class(error: Exception, kind: str) -> None:
    assert classify(error) == kind
    failure, reason = described_failure(error)
    assert failure == kind
    assert reason.startswith(f"{kind}: ")
    assert reason.count(kind) == 1 or kind == DISK
    assert "\n" not in reason


def test_the_deepest_cause_counts() -> None:
    error = MissingResourceError("the state could not be written")
    error.__cause__ = OSError(errno.ENOSPC, "write")
    assert classify(error) == DISK
    error.__cause__ = ValueError("not a number")
    assert classify(error) == RECIPE


@pytest.mark.parametrize(
    ("code", "state", "log", "kind"),
    [
        (None, "OUT_OF_MEMORY", "", HOST_MEMORY),
        (None, "NODE_FAIL", "", NODE),
        (None, "PREEMPTED", "", None),
        (None, "TIMEOUT", "", None),
        (None, "CANCELLED by 1000", "", None),
        (None, "", "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO NODE FAILURE ***", NODE),
        (None, "", "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***", None),
        (None, "", "srun: error: n1: task 0: Segmentation fault (core dumped)", BUG),
        (None, "FAILED", "srun: error: n1: task 0: Out Of Memory", HOST_MEMORY),
        (None, "", "all is well", None),
        (-signal.SIGKILL, "", "", HOST_MEMORY),
        (-signal.SIGSEGV, "", "", BUG),
        (-signal.SIGTERM, "", "", None),
    ],
)
def test_deaths_without_a_word_tell_their_class(code: int | None, state: str, log: str, kind: str | None) -> None:
    assert classify_death(code, state, log) == kind


def after(*failures: str | None, starts: tuple[int, ...] = ()) -> State:
    """A run whose attempts ended so; starts: the tokens that each went on from, without it none."""
    from_ = starts or (0,) * len(failures)
    attempts = [
        Attempt(0.0, "n1", 1, tokens_at_start=start, end=1.0, cause="error", failure=failure)
        for failure, start in zip(failures, from_, strict=True)
    ]
    return State("failed", tuple(attempts))


@pytest.mark.parametrize(
    ("failure", "retries", "wait_s", "elsewhere"),
    [(HOST_MEMORY, 1, 0, True), (NODE, 3, 0, True), (DISK, 6, 600, False)],
)
def test_retries_on_slurm_are_bounded(failure: str, retries: int, wait_s: int, elsewhere: bool) -> None:
    for count in range(1, retries + 1):
        policy = next_attempt(after(*[failure] * count), ON_SLURM)
        assert policy is not None
        assert (policy.wait_s, policy.elsewhere, policy.halve) == (wait_s, elsewhere, False)
    used_up = after(*[failure] * (retries + 1))
    assert next_attempt(used_up, ON_SLURM) is None
    assert next_attempt(replace(used_up, forgiven=1), ON_SLURM) is not None
    with_progress = after(*[failure] * (retries + 1), starts=tuple(range(retries + 1)))
    assert next_attempt(with_progress, ON_SLURM) is not None
    between = after(*[failure] * retries, None, failure)
    assert next_attempt(between, ON_SLURM) is None


@pytest.mark.parametrize("failure", [DIVERGED, RECIPE, BUG, None])
def test_other_failures_stop_the_branch_at_once(failure: str | None) -> None:
    assert next_attempt(after(failure), ON_SLURM) is None
    assert next_attempt(after(failure), LOCAL) is None
    assert next_attempt(State(), ON_SLURM) is None


def test_here_a_lost_rank_is_tried_once_more_and_a_full_disk_is_not() -> None:
    assert next_attempt(after(NODE), LOCAL) is not None
    assert next_attempt(after(NODE, NODE), LOCAL) is None
    assert next_attempt(after(DISK), LOCAL) is None
    assert next_attempt(after(HOST_MEMORY), LOCAL) is None


def test_micro_batches_are_halved_down_to_one_sequence() -> None:
    assert [halved(64, 1, None), halved(64, 4, None), halved(64, 1, 7)] == [32, 8, 3]
    assert halved(64, 4, 128) == 8
    assert halved(64, 1, 1) is None
    assert halved(4, 4, None) is None


def registered(folder: Path, parent: str | None = None, **execution: Any) -> Run:
    store, stage, recipe = Store(folder), "posttrain" if parent else "pretrain", {"batch": 8}
    key = stage_key(stage, parent, canonical(recipe))
    spec = {
        "key": key,
        "stage": stage,
        "parent": parent,
        "recipe": recipe,
        "study": "any",
        "evaluation": {},
        "axes": {},
        "versions": {},
        "execution": StageExecution().model_dump(mode="json") | execution,
    }
    store.register(key, spec)
    return store.run(key)


def test_gpu_memory_halves_the_micro_batch_of_the_next_attempt_and_retry_forgets_it(tmp_path: Path) -> None:
    run = registered(tmp_path)
    sizes = []
    for _ in range(4):
        run.begin(1)
        run.fail("out of memory on the GPU: CUDA", GPU_MEMORY)
        sizes.append((prepare_retry(run, ON_SLURM) is not None, run.execution()["micro_batch"]))
    assert sizes == [(True, 4), (True, 2), (True, 1), (False, 1)]
    assert run.spec()["execution"]["micro_batch"] is None
    run.retry()
    assert run.execution()["micro_batch"] is None
    run.begin(1)
    run.fail("out of memory on the GPU: CUDA", GPU_MEMORY)
    assert prepare_retry(run, LOCAL) is not None


def test_a_smaller_micro_batch_of_the_study_counts_over_an_adapted_one(tmp_path: Path) -> None:
    run = registered(tmp_path, micro_batch=2)
    run.adapt(4)
    assert run.execution()["micro_batch"] == 2
    run.adapt(1)
    assert run.execution()["micro_batch"] == 1


@pytest.mark.slow
def test_an_adapted_run_trains_the_same_batches_under_the_same_key(tmp_path: Path) -> None:
    grid = {"pretrain.exposure": [0]}
    study = tiny_study(tmp_path / "study", grid=grid)
    train_here(study, tmp_path / "whole")
    store = Store(tmp_path / "halved")
    train_here(study, store.root, "finetune.lr=2e-3")
    done = losses(tmp_path / "whole").keys() & losses(store.root).keys()
    assert done
    key = (losses(tmp_path / "whole").keys() - done).pop()
    spec = Store(tmp_path / "whole").run(key).spec()
    store.register(key, spec)
    store.run(key).adapt(3)
    train_here(study, store.root)
    here, there = losses(store.root)[key], losses(tmp_path / "whole")[key]
    assert "micro-batch reduced to 3 sequences" in str(store.run(key).state().attempts[-1].note)
    assert here["token_digest"] == there["token_digest"]
    for split, loss in there["splits"].items():
        assert here["splits"][split]["loss"] == pytest.approx(loss["loss"], abs=2e-3)


def test_rank_0_adopts_the_cause_of_the_rank_that_it_lost(tmp_path: Path) -> None:
    lost = (NODE, f"{NODE}: RuntimeError: {GLOO}")
    cause = (GPU_MEMORY, f"{GPU_MEMORY}: OutOfMemoryError: CUDA out of memory")
    assert agree_on_failure(tmp_path, Ranks(1, 2), *cause) == cause
    assert agree_on_failure(tmp_path, Ranks(0, 2), *lost) == cause
    clear_rank_causes(tmp_path)
    agree_on_failure(tmp_path, Ranks(1, 2), *lost)
    assert agree_on_failure(tmp_path, Ranks(0, 2), *lost) == lost
    assert agree_on_failure(tmp_path, Ranks(0, 2), DIVERGED, "diverged: nan") == (DIVERGED, "diverged: nan")


def test_a_run_without_room_is_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(NoRoomError) as caught:
        check_room(tmp_path, 1 << 60)
    assert classify(caught.value) == DISK


def test_runs_below_a_failed_run_are_skipped_and_planned_again_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    top = registered(tmp_path)
    middle = registered(tmp_path, top.key)
    leaf = registered(tmp_path, middle.key)
    keys = [run.key for run in (top, middle, leaf)]
    assert skip_blocked(store, keys) == []
    top.begin(1)
    top.fail("diverged: the training loss is nan", DIVERGED)
    assert skip_blocked(store, keys) == keys[1:]
    for run in (middle, leaf):
        assert run.state().state == "skipped"
        assert run.state().reason == f"pretrain {top.key[:8]} failed: diverged: the training loss is nan"
    store.run(top.key).retry()
    assert skip_blocked(store, keys) == []
    assert [run.state().state for run in (middle, leaf)] == ["planned", "planned"]


def test_an_attempt_that_died_without_reporting_is_explained_by_the_log(tmp_path: Path) -> None:
    run = registered(tmp_path)
    run.log.write_text("rank 0 of 1: begins\nCUDA out of memory\nrank 0 of 1: begins\nDetected 1 oom-kill event(s)\n")
    run.begin(os.getpid())
    lease = take_lease(run.lease)
    assert lease is not None
    assert not is_dead(Store(tmp_path), run, {})
    lease.release()
    assert is_dead(Store(tmp_path), run, {})
    death = explain_deaths(Store(tmp_path), [run])[run.key]
    assert death.failure == HOST_MEMORY
    assert settle_death(run, death)
    state = run.state()
    assert (state.state, state.attempts[-1].cause, state.attempts[-1].failure) == ("planned", "lost", HOST_MEMORY)
    assert state.reason is not None
    assert state.reason.startswith("out of memory on the host: ")
    run.begin(os.getpid())
    assert not settle_death(run, death)
    assert run.state().state == "failed"


def test_only_the_attempt_that_died_explains_the_death_of_a_requeued_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run, store = registered(tmp_path), Store(tmp_path)
    put_state(run, replace(run.state(), submission="token"))
    run.begin(os.getpid())
    assert run.state().attempts[-1].job_id == "7"
    attempts = [
        "error: *** JOB 7 ON n1 CANCELLED AT 2026-11-27T23:48:20 DUE TO JOB REQUEUE ***",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
    ]
    text = "".join(f"submitit INFO - {FIRST_LINE}job_id=7)\n{line}\n" for line in attempts)
    log = submission_folder(store, "token") / "7_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text(text)
    assert explain_deaths(store, [run])[run.key].failure == HOST_MEMORY
    log.write_text(text + f"submitit INFO - {FIRST_LINE}job_id=7)\n")
    assert explain_deaths(store, [run], later=True)[run.key].failure == HOST_MEMORY


def test_a_submitted_job_inherits_nothing_of_the_job_that_submits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = ("SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SUBMITIT_EXECUTOR", "SBATCH_X", "MASTER_ADDR", "RANK")
    kept = ("SLURM_CONF", "RANKING")
    for name in (*hidden, *kept):
        monkeypatch.setenv(name, "1")
    with outside_job():
        assert not any(name in os.environ for name in hidden)
        assert all(os.environ[name] == "1" for name in kept)
    assert all(os.environ[name] == "1" for name in hidden)
