"""Stages whose steps are compiled, through the launcher."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.stage.log import STOPPED
from retain.launchers.stage.training.numerics import Numerics, record_numerics, recorded_numerics
from retain.results.store.runs import Store
from tests.results.runs import of_stage, set_back
from tests.retain import losses, train_here, weights
from tests.studies import leave_out, tiny_study

COMPILED: dict[str, Any] = {
    "grid": {},
    "pretrain.dropout": 0.1,
    "pretrain.tokens": 2560 + 96,
    "posttrain.max_tokens": 2560,
    "posttrain.method": "lora",
    "posttrain.lora": {"rank": 4, "alpha": 8},
    "finetune.tokens": 1280,
    "execution": {"compile": True, "precision": "bf16", "save_steps": 4, "keep_states": True},
}
"""Dropout and a smaller last batch in pretraining, adapters in post-training, all weights in fine-tuning."""


ONE_STAGE: dict[str, Any] = {
    "stages": ["pretrain"],
    "grid": {},
    "pretrain.tokens": 2560,
    "execution": {"compile": True, "precision": "bf16", "save_steps": 4, "keep_states": True},
}
"""One kind of step, as each kind is compiled for a while."""


@pytest.fixture(scope="module")
def one_stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study of one compiled stage in bf16, and its store with all checkpoints."""
    folder = tmp_path_factory.mktemp("compiled")
    study = leave_out(tiny_study(folder / "study", **ONE_STAGE), "posttrain", "finetune")
    states = train_here(study, folder / "runs")
    assert {state.state for state in states.values()} == {"done"}, states
    return study, folder / "runs"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny study, compiled in bf16, and its store with all checkpoints."""
    folder = tmp_path_factory.mktemp("compiled")
    study = tiny_study(folder / "study", **COMPILED)
    states = train_here(study, folder / "runs")
    assert {state.state for state in states.values()} == {"done"}, states
    return study, folder / "runs"


@pytest.mark.slow
def test_a_compiled_stage_resumes_to_the_same_bits(one_stage: tuple[Path, Path], tmp_path: Path) -> None:
    study, undisturbed = one_stage
    store = tmp_path / "runs"
    shutil.copytree(undisturbed, store, symlinks=True)
    run = of_stage(store, "pretrain")
    tokens = set_back(run)
    train_here(study, store)
    assert run.state().attempts[-1].tokens_at_start == tokens
    numerics = recorded_numerics(run)
    assert numerics is not None
    assert numerics.compiled
    assert weights(store) == weights(undisturbed)
    assert losses(store) == losses(undisturbed)


@pytest.mark.slow
def test_compiled_stages_resume_to_the_same_bits(compiled: tuple[Path, Path], tmp_path: Path) -> None:
    study, undisturbed = compiled
    store = tmp_path / "runs"
    shutil.copytree(undisturbed, store, symlinks=True)
    begun = {stage: set_back(of_stage(store, stage)) for stage in ("pretrain", "posttrain", "finetune")}
    # With `auto`, a run keeps the numerics of its first attempt.
    train_here(study, store, "execution.compile=auto")
    for stage, tokens in begun.items():
        run = of_stage(store, stage)
        assert run.state().attempts[-1].tokens_at_start == tokens
        assert run.state().attempts[-1].note is None
        expected = Numerics(True, None, bf16=True, threads=1, sharded=False, deterministic=True)
        assert recorded_numerics(run) == expected
    assert weights(store) == weights(undisturbed)
    assert losses(store) == losses(undisturbed)


def compilers_of(session: int) -> list[int]:
    """The processes of a session that compile C++ at this moment."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, rest = stat.read_text().rpartition(")")[::2]
            if name.endswith("(cc1plus") and int(rest.split()[3]) == session:
                found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_a_stop_signal_that_reaches_the_compilers_too_stops_the_run_and_does_not_fail_it(
    compiled: tuple[Path, Path], tmp_path: Path
) -> None:
    study, undisturbed = compiled
    store = tmp_path / "runs"
    shutil.copytree(undisturbed, store, symlinks=True, ignore=shutil.ignore_patterns("cache"))
    run = of_stage(store, "pretrain")
    set_back(run)
    lines = [
        "import sys",
        "from pathlib import Path",
        "from retain.launchers.stage.attempt import attempt_code",
        "from retain.launchers.stage.ranks import Ranks",
        "from retain.launchers.stage.signals import StopRequest",
        "from retain.results.store.runs import Store",
        "stop = StopRequest()",
        "stop.install()",
        f"sys.exit(attempt_code(Store(Path({str(store)!r})), {run.key!r}, Ranks(), stop)[0])",
    ]
    # While the attempt tries whether the compiler works, and while it compiles a layer.
    for layers in (False, True):
        recorded = (run.folder / "steps.json").stat().st_mtime_ns
        process = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], start_new_session=True)
        try:
            while not compilers_of(process.pid) or layers != (
                (run.folder / "steps.json").stat().st_mtime_ns > recorded
            ):
                assert process.poll() is None
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGUSR2)
            assert process.wait(timeout=240) == STOPPED
        finally:
            process.kill()
        state = run.state()
        assert (state.state, state.reason, state.attempts[-1].cause) == ("planned", None, "SIGUSR2")
    train_here(study, store)
    assert weights(store) == weights(undisturbed)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ("execution.micro_batch=3", "a micro-batch of 3 sequences; the run began with no micro-batches"),
        ("execution.precision=fp32", "fp32; the run began with bf16"),
        ("execution.threads=2", "2 threads; the run began with 1 threads"),
        ("execution.deterministic=false", "non-deterministic kernels; the run began with deterministic kernels"),
    ],
)
def test_a_run_that_resumes_with_other_numerics_says_so(
    one_stage: tuple[Path, Path], tmp_path: Path, change: str, note: str
) -> None:
    study, undisturbed = one_stage
    store = tmp_path / "runs"
    shutil.copytree(undisturbed, store, symlinks=True)
    set_back(run := of_stage(store, "pretrain"))
    train_here(study, store, change, "execution.compile=false")
    assert f"resumes with {note}: same batches, not bit-identical" in str(run.state().attempts[-1].note)


def test_a_run_that_resumes_without_compiling_says_so(one_stage: tuple[Path, Path], tmp_path: Path) -> None:
    study, undisturbed = one_stage
    store = tmp_path / "runs"
    shutil.copytree(undisturbed, store, symlinks=True)
    set_back(of_stage(store, "pretrain"))
    shutil.rmtree(store / "cache", ignore_errors=True)
    train_here(study, store, "execution.compile=false")
    run = of_stage(store, "pretrain")
    note = run.state().attempts[-1].note
    assert note is not None
    assert "resumes with uncompiled steps; the run began with compiled steps: same batches" in note
    for split, loss in run.losses()["splits"].items():
        assert loss["loss"] == pytest.approx(losses(undisturbed)[run.key]["splits"][split]["loss"], abs=0.02)
    assert Store(store).run(run.key).losses()["token_digest"] == losses(undisturbed)[run.key]["token_digest"]


def test_the_numerics_that_a_run_records_are_read_again(tmp_path: Path) -> None:
    run = Store(tmp_path).run("key")
    assert recorded_numerics(run) is None
    run.folder.mkdir()
    record_numerics(run, Numerics(True, 8))
    assert recorded_numerics(run) == Numerics(True, 8)
