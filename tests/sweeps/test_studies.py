"""The studies of the paper: their sizes are the published ones, and stages that they share are trained once."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from retain.datamodules.corpora.known import known_facts
from retain.sweeps.schema.published_corpora import PUBLISHED
from retain.sweeps.schema.read import STUDIES, StudyFile, read_study
from retain.sweeps.schema.stages import Optimisation
from retain.sweeps.schema.study import Study
from retain.sweeps.tree.merged import merged
from retain.sweeps.tree.recipes.stage import exposed_sequences
from retain.sweeps.tree.tree import Tree, expand
from tests.retain import environment

SMALL = ("figure2", "figure3a", "figure3b", "figure4-5", "figure6", "figure7")
LARGE = ("figure8-9", "figure10-12", "table10")
LENGTH = 1024
NOWHERE = Path("no-store")


def planned(name: str, *overrides: str) -> tuple[StudyFile, Tree]:
    """A study with its tree, as planned before any data is prepared and without a network."""
    file = read_study(name, overrides)
    return file, expand(file, known_facts(file, NOWHERE))


def fields_of(file: StudyFile) -> Study:
    """The study of a file, which must not be a linear one."""
    assert isinstance(file.study, Study)
    return file.study


def roots(trees: Sequence[Tree]) -> set[str]:
    return {trial.key("pretrain") for tree in trees for trial in tree.trials}


def exposures(file: StudyFile) -> set[tuple[str | None, int, int]]:
    """Every (corpus mixed in, its number of sequences, seed) that the trials of a study need."""
    needed = set()
    for options in itertools.product(*file.dimensions):
        fields: dict[str, Any] = {}
        for option in options:
            fields |= option.fields
        post = fields_of(file).posttrain
        tokens = fields.get("posttrain.tokens", post.tokens)
        exposure = fields.get("pretrain.exposure", file.study.pretrain.exposure)
        mixed = exposed_sequences(exposure, tokens // LENGTH)
        corpus = fields.get("posttrain.corpus", post.corpus) if mixed else None
        needed.add((corpus, mixed, fields.get("seed", file.study.seed)))
    return needed


@pytest.mark.parametrize(("names", "count"), [(SMALL, 12), (LARGE, 3)])
def test_studies_of_one_model_size_train_each_distinct_pretraining_once(names: Sequence[str], count: int) -> None:
    made = [planned(name) for name in names]
    needed = set().union(*(exposures(file) for file, _ in made))
    together = merged([tree for _, tree in made])
    pretrainings = {stage.key for stage in together.stages.values() if stage.stage == "pretrain"}
    assert pretrainings == roots([tree for _, tree in made])
    assert len(pretrainings) == len(needed) == count
    assert set(together.stages) == set().union(*(tree.stages for _, tree in made))


def test_different_seeds_share_no_pretraining() -> None:
    seeded = [planned(name, "seed=[0,1,2]")[1] for name in SMALL]
    assert len(roots(seeded)) == 3 * 12


@pytest.mark.parametrize(
    ("name", "trials", "by_kind"),
    [
        ("figure2", 384, {"pretrain": 3, "posttrain": 48, "finetune": 384}),
        ("figure3a", 15, {"pretrain": 11, "posttrain": 15, "finetune": 15}),
        ("figure3b", 15, {"pretrain": 11, "posttrain": 12, "finetune": 15}),
        ("figure4-5", 480, {"pretrain": 2, "posttrain": 60, "finetune": 480}),
        ("figure6", 480, {"pretrain": 2, "posttrain": 60, "finetune": 480}),
        ("figure7", 384, {"pretrain": 2, "posttrain": 48, "finetune": 384}),
        ("figure8-9", 72, {"pretrain": 3, "posttrain": 12, "finetune": 72}),
        ("figure10-12", 96, {"pretrain": 2, "posttrain": 24, "finetune": 96}),
        ("table10", 12, {"pretrain": 2, "posttrain": 12, "finetune": 12}),
    ],
)
def test_a_study_has_the_published_number_of_checkpoints(name: str, trials: int, by_kind: dict[str, int]) -> None:
    _, tree = planned(name)
    assert len(tree.trials) == trials
    assert Counter(stage.stage for stage in tree.stages.values()) == by_kind


def test_each_method_of_figures_5_and_8_has_the_48_and_12_checkpoints_that_they_show() -> None:
    for name, each in (("figure4-5", 48), ("figure8-9", 12)):
        _, tree = planned(name)
        counts = Counter((trial.axes["pipeline"], trial.axes["method"]) for trial in tree.trials)
        assert {counts[cell] for cell in counts if cell[1] in ("unmixed", "mixed")} == {each}
    _, tree = planned("figure4-5")
    counts = Counter((trial.axes["pipeline"], trial.axes["method"]) for trial in tree.trials)
    assert counts["music-chemistry", "mixed+dropout"] == 96


def test_matched_allocation_trains_on_every_token_of_d_post_once_over_both_stages() -> None:
    _, tree = planned("figure3b")
    for trial in tree.trials:
        mixed = json.loads(tree.stages[trial.key("pretrain")].recipe)["exposure"]
        later = json.loads(tree.stages[trial.key("posttrain")].recipe) if trial.key("posttrain") else None
        early = mixed["sequences"] if mixed else 0
        assert early + (later["sequences"] if later else 0) == trial.axes["posttrain.tokens"] // LENGTH
        assert (later is None) == (trial.axes["pretrain.exposure"] == 1)
        assert later is None or (later["first"], later["distinct"]) == (early, later["sequences"])


def test_stages_that_two_studies_share_have_the_same_keys() -> None:
    trees = {name: planned(name)[1] for name in SMALL + LARGE}
    assert roots([trees["figure3a"]]) == roots([trees["figure3b"]])
    assert set(trees["table10"].stages) < set(trees["figure10-12"].stages)
    for name, method in (
        ("figure4-5", "mixed"),
        ("figure6", "unmixed"),
        ("figure7", "mixed"),
        ("figure10-12", "mixed"),
    ):
        base = "figure2" if name in SMALL else "figure8-9"
        runs = {key for trial in trees[name].trials if trial.axes["method"] == method for key in trial.path}
        assert runs <= set(trees[base].stages)


@pytest.mark.parametrize("names", [SMALL, LARGE])
def test_all_studies_of_one_model_size_read_the_same_corpora(names: Sequence[str]) -> None:
    facts = [known_facts(read_study(name), NOWHERE).corpora for name in names]
    prints: dict[tuple[str, int], set[str]] = {}
    for corpora in facts:
        for key, corpus in corpora.items():
            prints.setdefault(key, set()).add(corpus.fingerprint)
    assert {len(found) for found in prints.values()} == {1}


@pytest.mark.parametrize("name", SMALL + LARGE)
def test_every_held_out_split_has_a_million_tokens_and_every_corpus_covers_the_budgets(name: str) -> None:
    study = fields_of(read_study(name))
    for corpus in study.corpora.values():
        assert corpus.tokens is not None
        assert corpus.tokens * corpus.heldout >= 1e6
        assert corpus.published in PUBLISHED
    stages: list[Optimisation] = [study.pretrain, study.posttrain, study.finetune]
    assert all(stage.tokens <= (study.corpora[stage.corpus].tokens or 0) for stage in stages)


def test_learning_rates_at_1b_stay_constant_if_the_final_rate_is_above_the_peak() -> None:
    _, tree = planned("table10")
    recipes = [json.loads(stage.recipe) for stage in tree.stages.values() if stage.stage == "posttrain"]
    assert {(recipe["lr"], recipe["min_lr"]) for recipe in recipes} == {(lr, lr) for lr in (1e-5, 2e-5, 5e-5)}


def test_all_135m_studies_can_be_planned_together_without_network_torch_or_corpus_packages(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["music21"] = sys.modules["chemicals"] = sys.modules["torch"] = sys.modules["datasets"] = None
sys.modules["huggingface_hub"] = None
from retain.launchers.cli.app import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "plan", *SMALL, "--store", str(tmp_path / "runs"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    document = json.loads(done.stdout)
    assert document["study"] == "+".join(SMALL)
    assert [stage["stage"] for stage in document["stages"]].count("pretrain") == 12
    assert document["totals"]["stages"] == len(document["stages"]) == len({row["key"] for row in document["stages"]})
    assert set(document["totals"]["gpu_hours_by_device"]) == {"A100", "H100", "H200", "L40S"}


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.yaml")))
def test_every_study_that_comes_with_retain_expands_before_any_data_is_prepared(name: str) -> None:
    file, tree = planned(name)
    assert tree.provisional == isinstance(file.study, Study)  # the theory reads no data
    assert tree.trials


@pytest.mark.parametrize(("name", "decays"), [("midtraining", 4), ("laptop-midtraining", 3)])
def test_the_decays_of_mid_training_share_one_trunk_whose_optimizer_they_carry_on(name: str, decays: int) -> None:
    _, tree = planned(name)
    stages = Counter(stage.stage for stage in tree.stages.values())
    assert (stages["pretrain"], stages["midtrain"]) == (1, decays)
    (trunk,) = (key for key, stage in tree.stages.items() if stage.stage == "pretrain")
    assert tree.carried() == {trunk}


def test_a_study_of_conversations_trains_its_checkpoint_once_for_all_shares_of_chat() -> None:
    _, tree = planned("chat")
    assert tree.chain == ["posttrain", "finetune"]
    assert Counter(stage.stage for stage in tree.stages.values()) == {"posttrain": 1, "finetune": 9}
