"""The theory study with the same verbs, store and processes as every other study, cut to four trials."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from retain.launchers.local.devices import local_slots
from retain.launchers.local.launcher import WorkerGroup, train
from retain.launchers.planning.opened_study import open_study, prepare_study
from retain.launchers.planning.register import register
from retain.launchers.stage.attempt import make_attempt
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import AttemptStopped, StopRequest
from retain.results.analysis.linear_trials import read_trial
from retain.results.figures.theory import draw_theory
from retain.results.store.curves import read_curves
from retain.results.store.loss_table import trial_rows
from retain.results.store.runs import Store
from retain.results.store.status import study_status
from retain.results.store.verify import run_problems
from retain.sweeps.base.errors import StageFailedError
from tests.retain import losses, retain_here, retain_json, train_here, weights

SMALL = ("pretrain.exposure=[0, 0.95]", "seed=[0, 1]", "pretrain.lr=0.02")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store after a run of four trials: read it, do not write into it."""
    store = tmp_path_factory.mktemp("theory") / "runs"
    assert {state.state for state in train_here(Path("theory"), store, *SMALL).values()} == {"done"}
    return store


def test_every_stage_is_done_and_has_its_matrices_losses_and_curves(ran: Path) -> None:
    store = Store(ran)
    assert len(store.runs()) == 12
    for run in store.runs():
        assert run_problems(store, run) == []
        assert set(load_file(run.model / "model.safetensors")) == {"w1", "w2", "u", "v"}
        kept = run.losses()
        assert kept["trained_tokens"] == kept["steps"] == run.spec()["recipe"]["steps"]
        assert len(kept["features"]["times"]) == len(kept["features"]["strengths"]) > 100
        assert {"heldout/posttraining"} <= set(read_curves(run.folder)) or run.spec()["stage"] == "pretrain"
    leaves = [run for run in store.runs() if run.spec()["stage"] == "finetune"]
    assert all(set(run.losses()["splits"]) == {"pretraining", "posttraining", "finetuning"} for run in leaves)


def test_results_have_the_four_losses_and_only_unmixed_trials_forget(ran: Path) -> None:
    rows = retain_json("results", "theory", *SMALL, "--store", ran)["trials"]
    assert len(rows) == 4
    for row in rows:
        forgotten = row["retained_posttraining_loss"] - row["immediate_posttraining_loss"]
        assert abs(forgotten) < 1e-3 if row["axes"]["pretrain.exposure"] else forgotten > 0.3
    # A seed changes only the singular vectors.
    assert rows[0]["finetuning_loss"] == pytest.approx(rows[1]["finetuning_loss"], abs=1e-12)
    assert rows[0]["keys"] != rows[1]["keys"]


def test_plan_status_why_verify_and_export_work_on_a_theory_study(ran: Path) -> None:
    plan = retain_json("plan", "theory", *SMALL, "--store", ran)
    assert {stage["state"] for stage in plan["stages"]} == {"done"}
    assert plan["totals"]["to_train"] == 0
    assert set(plan["stages"][0]) == {"key", "stage", "parent", "axes", "tokens", "state"}
    status = study_status(open_study("theory", SMALL, ran).tree, Store(ran))
    assert {(run.state, run.progress, run.tokens) for run in status if run.stage == "posttrain"} == {
        ("done", 1.0, 2000)
    }
    unmixed, mixed = (
        next(stage["key"] for stage in plan["stages"] if stage["axes"] == {"pretrain.exposure": alpha, "seed": 0})
        for alpha in (0, 0.95)
    )
    why = retain_json("why", "theory", unmixed, mixed, *SMALL, "--store", ran)
    assert {difference["field"].split(".")[1] for difference in why["differences"]} == {"exposure"}
    assert "12 runs checked, 0 problems" in retain_here("verify", "theory", *SMALL, "--store", ran).stdout
    refused = retain_here("export", mixed, "--store", ran, "--to", ran / "out", code=2).stderr
    assert "no Hugging Face form" in refused


def test_the_figure_is_written_as_png_and_svg_with_the_closed_forms(ran: Path) -> None:
    opened = open_study("theory", SMALL, ran)
    rows = trial_rows(opened.tree, opened.store)
    png, svg = draw_theory(ran, "theory", rows)
    assert png.name == "theory.png"
    text = svg.read_text(encoding="utf-8")
    for words in (
        "α* = 0.758",
        "learns invariant and inconsistent",
        "learns invariant and specialised",
        "closed forms",
    ):
        assert words in text
    assert "missing" not in text
    before = png.read_bytes(), svg.read_bytes()
    assert [path.read_bytes() for path in draw_theory(ran, "theory", rows)] == list(before)
    # The tolerance of the study is 0.02 at a quarter of this learning rate.
    trials = [read_trial(opened.store, row) for row in rows]
    assert all(trial is not None and trial.deviation() < 0.08 for trial in trials)


def test_the_figure_of_partial_results_counts_missing_trials(ran: Path, tmp_path: Path) -> None:
    opened = open_study("theory", SMALL, ran)
    rows = trial_rows(opened.tree, opened.store)
    nothing = {name: None for name in rows[0] if name.endswith("_loss")}
    partial = [row | nothing if row["axes"]["seed"] == 1 else row for row in rows]
    _, svg = draw_theory(ran, "theory", partial)
    assert "2 of 4 trials are missing" in svg.read_text(encoding="utf-8")
    assert draw_theory(tmp_path, "theory", [row | nothing for row in rows]) == []


def test_a_killed_stage_restarts_and_ends_bit_exactly(ran: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    opened = prepare_study("theory", SMALL, store)
    register(opened.tree, opened.file, opened.facts, opened.store)
    killed: list[str] = []

    def kill_two(groups: Mapping[str, WorkerGroup]) -> None:
        for key, group in groups.items():
            run, pid = opened.store.run(key), group.processes[0].pid
            if len(killed) < 2 and key not in killed and pid and run.state().state == "running":
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGSTOP)
                    if is_killed := run.state().state == "running":
                        killed.append(key)
                    os.kill(pid, signal.SIGKILL if is_killed else signal.SIGCONT)
        time.sleep(0.005)

    train(
        opened.tree,
        opened.store,
        local_slots(opened.file.study.execution, opened.file.study.stages),
        lambda _: None,
        kill_two,
    )
    assert [len(opened.store.run(key).state().attempts) for key in killed] == [2, 2]
    assert weights(store) == weights(ran)
    assert losses(store) == losses(ran)


def test_a_stage_that_is_asked_to_stop_is_left_planned_and_can_be_trained_later(tmp_path: Path) -> None:
    store, (key, *_) = registered(tmp_path / "runs")
    stop = StopRequest()
    stop.signal = "SIGTERM"
    with pytest.raises(AttemptStopped):
        make_attempt(store, key, Ranks(), stop)
    assert store.run(key).state().state == "planned"
    make_attempt(store, key, Ranks(), StopRequest())
    assert store.run(key).is_done()
    steps = [step for step, _ in next(iter(read_curves(store.run(key).folder).values()))]
    assert steps == sorted(set(steps))


def test_a_job_imports_neither_torch_nor_what_reads_study_files(tmp_path: Path) -> None:
    store, (key, *_) = registered(tmp_path / "runs")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import retain.launchers.jobs.epilogue, retain.launchers.jobs.job\n"
        "from retain.launchers.stage.attempt import attempt_code\n"
        "from retain.launchers.stage.ranks import Ranks\n"
        "from retain.launchers.stage.signals import StopRequest\n"
        "from retain.results.store.runs import Store\n"
        f"assert attempt_code(Store(Path({str(store.root)!r})), {key!r}, Ranks(), StopRequest()) == (0, 'done')\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert store.run(key).is_done()
    assert not {"torch", "lightning", "transformers", "pydantic", "pandas", "scipy"} & set(done.stdout.split())


@pytest.mark.parametrize("rate", [("pretrain.lr=3",), ("pretrain.lr=1e90", "pretrain.time=1e90")])
def test_a_stage_that_diverges_fails_and_names_the_field_to_lower(rate: Sequence[str], tmp_path: Path) -> None:
    """Also in its only step, after which the features are finite and their squares are not."""
    store, (key, *_) = registered(tmp_path / "runs", *rate)
    with pytest.raises(StageFailedError, match=r"diverged.*lower lr"):
        make_attempt(store, key, Ranks(), StopRequest())
    state = store.run(key).state()
    assert (state.state, state.attempts[-1].failure) == ("failed", "diverged")


def test_every_recipe_in_the_store_is_readable_json(ran: Path) -> None:
    for run in Store(ran).runs():
        recipe = json.loads((run.folder / "stage.json").read_text(encoding="utf-8"))["recipe"]
        assert len(recipe["corpus"]["targets"]) == len(recipe["corpus"]["variances"]) == 8


def registered(root: Path, *overrides: str) -> tuple[Store, list[str]]:
    """One trial of a short study, planned in a new store, and its keys, parents first."""
    root.mkdir()
    opened = open_study("theory", ("pretrain.exposure=0.9", "seed=0", "pretrain.lr=0.02", *overrides), root)
    register(opened.tree, opened.file, opened.facts, opened.store)
    return opened.store, list(opened.tree.stages)
