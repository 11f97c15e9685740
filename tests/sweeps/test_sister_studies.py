"""The studies of other papers: each has the design that its claims need, and trains what its trials share once."""

import json
from collections import Counter

import pytest

from retain.results.analysis.sisters.replay_schedules import cell_of
from retain.sweeps.base.units import parse_size
from tests.sweeps.test_studies import fields_of, planned


@pytest.mark.parametrize(
    ("name", "by_stage"),
    [
        ("forgetting-law", {"pretrain": 5, "finetune": 5 * 4 * 5}),
        ("laptop-forgetting-law", {"pretrain": 3 * 5, "finetune": 3 * 5 * 4 * 4}),
    ],
)
def test_every_fine_tuning_of_a_model_starts_from_its_one_pretraining(name: str, by_stage: dict[str, int]) -> None:
    _, tree = planned(name)
    assert Counter(stage.stage for stage in tree.stages.values()) == by_stage


MOST_TOKENS = 20e6
TWINS = ("laptop-forgetting-law", "laptop-replay-schedules", "laptop-overtrained", "laptop-specialised")


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_trains_in_about_a_quarter_of_an_hour_on_two_cores(name: str) -> None:
    """About 20,000 tokens a second."""
    file, tree = planned(name)
    assert sum(stage.tokens for stage in tree.stages.values()) < MOST_TOKENS
    assert 3 <= len(file.values("seed")) <= 5
    assert all(corpus.package for corpus in fields_of(file).corpora.values())


@pytest.mark.parametrize("name", ["forgetting-law", "laptop-forgetting-law"])
def test_one_percent_is_a_share_that_the_law_of_forgetting_is_measured_at(name: str) -> None:
    file, _ = planned(name)
    (share,) = (axis for axis in file.axes if axis.endswith(".share"))
    assert {0, 0.01} < set(file.values(share))


@pytest.mark.parametrize("name", ["replay-schedules", "laptop-replay-schedules"])
def test_the_phases_of_every_run_have_the_lengths_and_the_rare_data_that_its_name_says(name: str) -> None:
    """Phase 2 is the last g · a / (1 - r) of the run, and holds the share a of the rare data, in whole passes."""
    file, tree = planned(name)
    length = fields_of(file).sequence_length
    whole = fields_of(file).pretrain.tokens // length
    rare = min(
        part["distinct"]
        for stage in tree.stages.values()
        for part in json.loads(stage.recipe).get("mix", [])
        if stage.stage == "pretrain"
    )
    passes = {"replay-schedules": 32, "laptop-replay-schedules": 4}[name]
    for trial in tree.trials:
        cell = cell_of({"axes": trial.axes})
        assert cell is not None
        recipes = {tree.stages[key].stage: json.loads(tree.stages[key].recipe) for key in trial.path}
        own = rare * cell.rare
        late, early = passes * own * cell.late, passes * own * (1 - cell.late)
        phase = late / (1 - cell.replay)
        assert sum(recipe["sequences"] for recipe in recipes.values()) == whole
        mixed = recipes["pretrain"].get("mix", [])
        if cell.schedule == "continued":
            assert list(recipes) == ["pretrain"]
            ends = {tuple(part["window"]): part["sequences"] for part in mixed}
            assert ends.pop((round(whole - phase), whole)) == late
            assert ends == ({(0, round(whole - phase)): early} if early else {})
        else:
            assert recipes["phase2"]["sequences"] == pytest.approx(phase, abs=1)
            assert recipes["phase2"]["distinct"] == own
            assert sum(part["sequences"] for part in mixed) == early
            replayed = sum(part["sequences"] for part in recipes["phase2"].get("mix", []))
            assert replayed == pytest.approx(phase - late, abs=1)
            assert all(part["first"] == recipes["pretrain"]["distinct"] for part in recipes["phase2"].get("mix", []))


@pytest.mark.parametrize(
    ("name", "pretrainings", "trials"), [("replay-schedules", 51, 54), ("laptop-replay-schedules", 60, 66)]
)
def test_restarted_runs_with_a_phase_1_of_the_same_length_and_text_share_it(
    name: str, pretrainings: int, trials: int
) -> None:
    _, tree = planned(name)
    assert len(tree.trials) == trials
    assert Counter(stage.stage for stage in tree.stages.values())["pretrain"] == pretrainings


@pytest.mark.parametrize(("name", "budgets", "seeds"), [("overtrained", 6, 1), ("laptop-overtrained", 5, 5)])
def test_all_numbers_of_tokens_share_one_trunk(name: str, budgets: int, seeds: int) -> None:
    file, tree = planned(name)
    counts = Counter(stage.stage for stage in tree.stages.values())
    trunks = ["pretrain", *(f"trunk{number}" for number in range(2, budgets + 1))]
    assert [counts[trunk] for trunk in trunks] == [seeds] * budgets
    assert counts["decay"] == budgets * seeds
    assert counts["finetune"] == counts["decay"] * len(file.values("finetune.lr"))


@pytest.mark.parametrize(("name", "seeds"), [("specialised", 1), ("laptop-specialised", 5)])
def test_each_kind_of_pretraining_has_one_trunk(name: str, seeds: int) -> None:
    _, tree = planned(name)
    counts = Counter(stage.stage for stage in tree.stages.values())
    assert [counts[trunk] for trunk in ("pretrain", "trunk2", "trunk3")] == [2 * seeds] * 3
    assert counts["decay"] == counts["adapt"] == 6 * seeds


@pytest.mark.parametrize("name", ["overtrained", "laptop-overtrained", "specialised", "laptop-specialised"])
def test_trunk_and_decay_train_on_the_tokens_that_the_case_says_and_read_no_general_text_twice(name: str) -> None:
    file, tree = planned(name)
    length = fields_of(file).sequence_length
    for trial in tree.trials:
        text = trial.axes.get("budget") or trial.axes["pretraining"].partition(" ")[2]
        recipes = [json.loads(tree.stages[key].recipe) for key in trial.path[:-1]]
        assert sum(recipe["sequences"] for recipe in recipes) == pytest.approx(parse_size(text) / length, rel=1e-3)
        end = 0
        for recipe in recipes:
            assert recipe.get("first", 0) >= end
            end = recipe.get("first", 0) + recipe["distinct"]
        kind = trial.axes.get("pretraining", "")
        mixed = [sum(part["sequences"] for part in recipe.get("mix", [])) / recipe["sequences"] for recipe in recipes]
        share = {"specialised": 0.05, "laptop-specialised": 0.1}.get(name, 0) if kind.startswith("special") else 0
        assert mixed == pytest.approx([share] * len(recipes), abs=2e-3)
