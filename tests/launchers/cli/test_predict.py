"""`retain probe` on a trained study: real short fine-tunings, real gradients, from the command line."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retain.datamodules.order.mixtures import stage_order
from retain.launchers.cli.views.results import print_predictors
from retain.launchers.planning.opened_study import open_study
from retain.launchers.retention_probe import gradient_probe, probe_file, probe_settings, short_finetuning, short_probes
from retain.lightning_modules.optimisation import rate_of_recipe
from retain.results.analysis.predictors import PREDICTORS
from retain.results.store.garbage import find_waste, free
from retain.results.store.runs import Store
from retain.sweeps.base.errors import StudyError
from retain.sweeps.tree.recipes.mixture import shortened, spread, window_of
from tests.conftest import Trained
from tests.retain import retain_here, retain_json
from tests.studies import tiny_tree

SHARE = "0.2"


@dataclass(frozen=True)
class Probed:
    """The tiny study after `retain probe`, its store, and the document that the command printed."""

    study: Path
    store: Path
    document: dict[str, Any]


@pytest.fixture(scope="module")
def probed(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    """Probed once for this file: read it, do not write into it."""
    store = tmp_path_factory.mktemp("probed") / "runs"
    shutil.copytree(trained.store, store, symlinks=True)
    return Probed(trained.study, store, probe(trained.study, store))


def probe(study: Path, store: Path, *more: str, code: int = 0) -> dict[str, Any]:
    return dict(retain_json("probe", study, *more, "--share", SHARE, "--store", store, code=code))


@pytest.mark.slow
def test_every_trial_has_every_predictor_and_its_true_loss(probed: Probed, trained: Trained) -> None:
    rows = retain_json("results", trained.study, "--store", trained.store)["trials"]
    trials = probed.document["trials"]
    assert [trial["axes"] for trial in trials] == [row["axes"] for row in rows]
    for trial, row in zip(trials, rows, strict=True):
        predictors = trial["predictors"]
        assert set(predictors) == set(PREDICTORS)
        assert trial["retained_posttraining_loss"] == row["retained_posttraining_loss"]
        assert predictors["immediate_posttraining_loss"] == row["immediate_posttraining_loss"]
        assert (
            predictors["short_forgetting"]
            == predictors["short_retained_loss"] - predictors["immediate_posttraining_loss"]
        )
        # A fifth of the steps changes the weights, and forgets less than the whole stage.
        assert predictors["short_retained_loss"] not in (
            predictors["immediate_posttraining_loss"],
            row["retained_posttraining_loss"],
        )
        assert 0 < predictors["gradient_share"] < 1
    assert len({trial["predictors"]["gradient_share"] for trial in trials}) == 2  # one for each θ_post


def test_correlations_within_each_rate_and_over_all_trials_are_saved_for_the_report(probed: Probed) -> None:
    rows = {(row["predictor"], row["within"].get("finetune.lr")): row for row in probed.document["correlations"]}
    assert set(rows) == {(name, rate) for name in PREDICTORS for rate in (None, 5e-4, 2e-3)}
    for (_, rate), row in rows.items():
        assert (row["trials"], row["starts"]) == ((4, 2) if rate is None else (2, 2))
        assert row["low"] is row["high"] is None  # two θ_post are too few for an interval
        assert (row["correlation"] is None) == (rate is not None)
    saved = json.loads((probed.store / "studies" / "tiny" / "predictors.json").read_text())
    assert saved == {"format": 1, **probed.document}


def test_a_short_finetuning_is_the_same_stage_as_in_a_study_with_that_budget(probed: Probed) -> None:
    plan = retain_json("plan", probed.study, "finetune.tokens=1024", "finetune.warmup=0", "--store", probed.store)
    assert {stage["state"] for stage in plan["stages"]} == {"done"}
    assert len([stage for stage in plan["stages"] if stage["stage"] == "finetune"]) == 4


@pytest.mark.parametrize(
    ("share", "sequences", "steps", "warmup"), [(0.5, 80, 10, 1), (0.1, 16, 2, 0), (1e-6, 1, 1, 0)]
)
def test_only_budget_and_warmup_shrink_in_proportion(share: float, sequences: int, steps: int, warmup: int) -> None:
    whole = next(stage for stage in tiny_tree().stages.values() if stage.stage == "finetune")
    short = short_finetuning(whole, share)
    before, after = json.loads(whole.recipe), json.loads(short.recipe)
    changed = {"distinct": sequences, "sequences": sequences, "steps": steps, "warmup": warmup}
    assert after == before | changed
    assert (short.parent, short.tokens) == (whole.parent, sequences * before["sequence_length"])


WINDOWED: dict[str, Any] = {
    "finetune.mix": {"music": {"share": 0.2}, "general": [{"tokens": 640, "window": [0.5, 1]}, {"tokens": 32}]},
    "finetune.schedule": {"wsd": 0.5},
}


@pytest.mark.parametrize("share", [1e-4, 0.03, 0.1, 0.3, 0.77, 0.99])
def test_what_is_mixed_in_and_the_decay_shrink_too(share: float) -> None:
    whole = next(stage for stage in tiny_tree(**WINDOWED).stages.values() if stage.stage == "finetune")
    after = json.loads(short_finetuning(whole, share).recipe)
    sequences, mix = after["sequences"], after.get("mix", [])
    order = stage_order(after, dict.fromkeys([after["corpus"], *(part["corpus"] for part in mix)], 10_000))
    source, _ = order.locate(np.arange(sequences))
    assert [(source == number).sum() for number, _ in enumerate(mix, 1)] == [part["sequences"] for part in mix]
    assert 0 < (source == 0).sum() == sequences - sum(part["sequences"] for part in mix)
    assert after["steps"] < 4 or rate_of_recipe(after, after["warmup"]) == after["lr"]
    assert after["warmup"] + after["schedule"]["wsd"] <= after["steps"]


MIXED: dict[str, Any] = {"grid": {}, "finetune.schedule": {"wsd": 0.5}, "finetune.warmup": 0}
REPLAY = {"share": 0.25, "window": [0.5, 1], "replaces": True}


def test_a_short_finetuning_with_a_mixture_is_the_same_stage_as_in_a_study_with_that_budget() -> None:
    mix = {"finetune.mix": {"music": [REPLAY, {"share": 0.05, "skip": 320, "replaces": True}]}}
    whole, wanted = (
        next(stage for stage in tiny_tree(**MIXED, **mix, **tokens).stages.values() if stage.stage == "finetune")
        for tokens in ({"finetune.tokens": 5120}, {"finetune.tokens": 1280})
    )
    assert json.loads(short_finetuning(whole, 0.25).recipe) == json.loads(wanted.recipe)
    assert short_finetuning(whole, 0.25).key == wanted.key


@pytest.mark.parametrize("share", [0.001, 0.01, 0.02, 0.033, 0.1, 0.37, 0.9])
def test_the_mixture_of_a_short_finetuning_fits_it(share: float) -> None:
    full = [{"tokens": 1280, "window": [0.75, 1]}, {"tokens": 1280, "window": [0.5, 0.75]}, {"share": 0.1}]
    tree = tiny_tree(**MIXED, **{"finetune.mix": {"music": full}})
    whole = next(stage for stage in tree.stages.values() if stage.stage == "finetune")
    recipe = json.loads(short_finetuning(whole, share).recipe)
    parts, total = recipe.get("mix", []), recipe["sequences"]
    main = total - sum(part["sequences"] for part in parts)
    assert 1 <= recipe["distinct"] <= main
    assert recipe["schedule"]["wsd"] <= recipe["steps"]
    assert all(1 <= part["distinct"] <= part["sequences"] for part in parts)
    spread(total, [window_of(part, total) for part in parts])  # raises OverfullError if they do not fit
    assert main == pytest.approx(total * 160 / json.loads(whole.recipe)["sequences"], abs=2)


def test_a_component_whose_window_is_too_short_leaves_the_others_as_they_are() -> None:
    large = {"corpus": "a", "distinct": 2500, "sequences": 2500}
    small = {"corpus": "b", "distinct": 6, "sequences": 6, "window": [5006, 5014]}
    assert shortened([large, small], 10_000, 1000) == [large | {"distinct": 250, "sequences": 250}]


def test_a_second_probe_trains_and_measures_nothing(probed: Probed) -> None:
    before = {file: file.stat().st_mtime_ns for run in Store(probed.store).runs() for file in run.folder.rglob("*")}
    assert any(file.name.startswith("probe-") for file in before)
    assert probe(probed.study, probed.store) == probed.document
    assert before == {
        file: file.stat().st_mtime_ns for run in Store(probed.store).runs() for file in run.folder.rglob("*")
    }


def test_verify_and_gc_ignore_probes(probed: Probed) -> None:
    checked = retain_json("verify", "--store", probed.store)
    assert (checked["runs"], checked["problems"]) == (12, [])
    assert find_waste(Store(probed.store), None, weights=False) == []
    freed = find_waste(Store(probed.store), None, weights=True)
    assert not any("probe-" in str(waste.path) for waste in freed)


def test_gradients_are_measured_again_after_damage_which_is_said_and_are_the_same(
    probed: Probed, tmp_path: Path
) -> None:
    store = Store(shutil.copytree(probed.store, tmp_path / "runs", symlinks=True))
    start = next(run for run in store.runs() if run.spec()["stage"] == "posttrain")
    finetuning = next(run for run in store.runs() if run.spec()["stage"] == "finetune").spec()["recipe"]["corpus"]
    place = probe_file(start, probe_settings(start.spec()["evaluation"]["posttraining"], finetuning))
    kept = json.loads(place.read_text())
    place.write_text(place.read_text()[:50])
    said: list[str] = []
    again = gradient_probe(store, start, finetuning, said.append)
    assert said[0].startswith(f"{place} is damaged")
    assert said[0].endswith("; it is measured again")
    assert again is not None
    assert again["shares"] == kept["shares"]
    assert json.loads(place.read_text()) == {"format": 1, **again}
    assert kept["sketch"] is None  # exact: the model is small
    assert 8 < kept["rank"] == kept["posttraining_batches"] <= 32
    assert len(kept["shares"]) == kept["finetuning_batches"] == 8


def test_trials_without_theta_post_are_left_out_and_counted(probed: Probed, tmp_path: Path) -> None:
    store = shutil.copytree(probed.store, tmp_path / "runs", symlinks=True)
    document = probe(probed.study, store, "pretrain.exposure=[0, 0.5, 1]")
    assert len(document["trials"]) == 4
    (left,) = document["left_out"]
    assert (left["trials"], "--train trains up to it" in left["reason"]) == (2, True)


@pytest.mark.slow
def test_train_trains_up_to_theta_post_and_no_further(probed: Probed, tmp_path: Path) -> None:
    store = shutil.copytree(probed.store, tmp_path / "runs", symlinks=True)
    document = probe(probed.study, store, "pretrain.exposure=0", "finetune.lr=5e-4", "posttrain.lr=2e-3", "--train")
    (trial,) = document["trials"]
    assert trial["retained_posttraining_loss"] is None
    assert None not in trial["predictors"].values()
    kinds = [run.spec()["stage"] for run in Store(store).runs()]
    assert (kinds.count("posttrain"), kinds.count("finetune")) == (3, 9)


def test_freed_weights_are_named_with_the_cure_and_earlier_measurements_stay(
    trained: Trained, probed: Probed, tmp_path: Path
) -> None:
    fresh = Store(shutil.copytree(trained.store, tmp_path / "fresh", symlinks=True))
    known = Store(shutil.copytree(probed.store, tmp_path / "known", symlinks=True))
    for store in (fresh, known):
        assert all(free(store, waste) is None for waste in find_waste(store, None, weights=True))
    refused = retain_here("probe", trained.study, "--share", SHARE, "--store", fresh.root, code=3)
    assert "retain gc --weights has freed weights that are needed to start from; delete" in refused.stderr
    assert probe(probed.study, known.root) == probed.document


def test_wrong_shares_are_refused_before_anything_is_trained(probed: Probed) -> None:
    opened = open_study(str(probed.study), (), probed.store)
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(StudyError, match="a share of the fine-tuning budget"):
            short_probes(opened, share, False)


@pytest.mark.parametrize(("share", "shown"), [(0.02, "2%"), (0.0004, "0.04%"), (0.125, "12.5%")])
def test_the_share_of_a_probe_is_printed_however_small(
    share: float, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_predictors({"share": share, "correlations": [], "trials": []}, None)
    assert f"probed with {shown} of the fine-tuning budget" in capsys.readouterr().out


def test_a_linear_study_has_no_probe(tmp_path: Path) -> None:
    assert "language models" in retain_here("probe", "theory", "--store", tmp_path, code=2).stderr
