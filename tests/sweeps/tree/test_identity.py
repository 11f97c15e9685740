"""Stage keys: which fields change them, which never do, and the golden keys that must not change."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.models import Model
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.section import STAGE_KINDS
from retain.sweeps.schema.stages import Finetune, Posttrain, Pretrain
from retain.sweeps.schema.study import Study
from retain.sweeps.tree.data_facts import CorpusFacts, Facts
from retain.sweeps.tree.tree import expand
from tests.studies import made_up_facts, tiny_fields, tiny_tree
from tests.sweeps.write_golden_keys import COMMAND, GOLDEN, golden_keys

POST = {"corpus": "music", "tokens": 2560, "max_tokens": 5120, "lr": 1e-3, "min_lr": 1e-5, "warmup": 2, "batch": 8}
RICH: dict[str, Any] = {
    "grid": {},
    "pretrain": {
        "corpus": "general",
        "tokens": 7680,
        "exposure": 0.5,
        "lr": 3e-3,
        "min_lr": 1e-4,
        "warmup": 5,
        "batch": 8,
    },
    "posttrain": POST | {"replay": 0.1, "dropout": 0.02, "early_stopping": {"every": 5, "patience": 3}},
}
"""A study in which every field has an effect."""


def path_keys(**overrides: Any) -> dict[str, str | None]:
    """The keys of a study with one trial, by stage."""
    (trial,) = tiny_tree(**RICH | overrides).trials
    return {stage: trial.key(stage) for stage in STAGE_KINDS}


def changed_stages(**overrides: Any) -> list[str]:
    before, after = path_keys(), path_keys(**overrides)
    return [stage for stage in STAGE_KINDS if before[stage] != after[stage]]


def test_stage_keys_match_the_golden_file() -> None:
    golden = json.loads(GOLDEN.read_text())
    now = golden_keys()
    assert list(now) == list(golden), f"the studies of the golden file changed; run `{COMMAND}`"
    for study, lines in golden.items():
        recorded, made = ([line.split()[:2] for line in part] for part in (lines, now[study]))
        assert made == recorded, (
            f"the stage keys of {study!r} changed, so users would have to retrain all their runs; "
            f"if that is deliberate, rewrite the golden file with `{COMMAND}` and commit it"
        )


OPTIMISATION = {
    "tokens": 5120 + 32,
    "lr": 2e-3,
    "min_lr": 2e-5,
    "warmup": 3,
    "batch": 16,
    "weight_decay": 0.2,
    "betas": [0.9, 0.99],
    "clip": 0.5,
    "dropout": 0.1,
    "seed": 7,
    "corpus": "chemistry",
    "mix": {"chemistry": {"share": 0.1}},
    "schedule": "linear",
    "decay": "all",
    "optimizer": "muon",
}
CHANGES: dict[str, dict[str, Any]] = {
    "pretrain": OPTIMISATION | {"exposure": 0.75, "exposure_schedule": "early"},
    "posttrain": OPTIMISATION
    | {
        "tokens": 2240,
        "max_tokens": 7680,
        "replay": 0.2,
        "early_stopping": {"every": 5, "patience": 4},
    }
    | {"method": "lora", "anchor": {"l2sp": 0.01}},
    "finetune": OPTIMISATION | {"corpus": "general", "method": "lora", "anchor": {"l2sp": 0.01}},
    "model": {
        "layers": 3,
        "hidden": 64,
        "heads": 4,
        "kv_heads": 1,
        "mlp": 128,
        "vocabulary": 512,
        "tied": False,
        "context": 128,
        "rope_base": 5e5,
        "norm_eps": 1e-6,
        "initializer_range": 0.05,
    },
    "study": {"sequence_length": 16, "seed": 1, "subset_seed": 1, "allocation": "matched"}
    | {"documents": {"attention": "within"}},
}
WITHOUT_EFFECT = {
    # `repeat` only allows λ > 1. `floor` has an effect if min_lr is above lr. The others have one in studies that fit them, as
    # tested below.
    "pretrain": {"repeat", "floor", "passes"},
    "posttrain": {"lora", "floor", "passes", "start", "average", "objective"},
    "finetune": {"lora", "floor", "passes", "start", "average", "objective"},
    # Names: of the other fields, and of a checkpoint, whose content changes keys, as test_checkpoint_recipes.py shows.
    "model": {"preset", "hf", "revision", "weights"},
    "study": {
        "study",
        "evaluate",
        "execution",
        "cases",
        "grid",
        "search",
        "tokenizer",
        "corpora",
        "stages",
        *STAGE_KINDS,
        "model",
    },
}
SECTIONS = {"pretrain": Pretrain, "posttrain": Posttrain, "finetune": Finetune, "model": Model, "study": Study}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_the_schema_is_listed_as_changing_keys_or_as_without_effect(section: str) -> None:
    fields = set(SECTIONS[section].model_fields)
    assert fields == set(CHANGES[section]) | WITHOUT_EFFECT[section]
    assert not set(CHANGES[section]) & WITHOUT_EFFECT[section]


@pytest.mark.parametrize(("section", "field"), [(part, field) for part in STAGE_KINDS for field in CHANGES[part]])
def test_every_field_of_a_stage_changes_its_key_and_the_keys_below(section: str, field: str) -> None:
    changed = changed_stages(**{f"{section}.{field}": CHANGES[section][field]})
    assert changed[-1] == "finetune"
    assert section in changed
    of_d_post = section == "posttrain" and field in ("corpus", "tokens")
    assert changed == list(STAGE_KINDS) if of_d_post else changed == list(STAGE_KINDS[STAGE_KINDS.index(section) :])


@pytest.mark.parametrize("field", ["passes", "start"])
@pytest.mark.parametrize("section", STAGE_KINDS)
def test_passes_and_a_carried_optimizer_change_the_key_of_their_stage_and_the_keys_below(
    section: str, field: str
) -> None:
    if (section, field) == ("pretrain", "start"):
        return  # Pretraining follows no stage.
    changed = 2 if field == "passes" else {"optimizer": "carry"}
    simple = {"grid": {}, "posttrain.max_tokens": None}
    (before,), (after,) = (
        tiny_tree(**simple).trials,
        tiny_tree(**simple, **{f"{section}.{field}": changed}).trials,
    )
    changed = [stage for stage in STAGE_KINDS if before.key(stage) != after.key(stage)]
    assert changed == list(STAGE_KINDS[STAGE_KINDS.index(section) :])
    default = 1 if field == "passes" else {"optimizer": "new"}
    assert tiny_tree(**simple, **{f"{section}.{field}": default}).trials == [before]


@pytest.mark.parametrize("field", CHANGES["model"])
def test_every_number_of_the_model_changes_every_key(field: str) -> None:
    assert changed_stages(**{f"model.{field}": CHANGES["model"][field]}) == list(STAGE_KINDS)


@pytest.mark.parametrize("field", ["sequence_length", "seed", "subset_seed", "documents"])
def test_sequence_length_seeds_and_attention_within_documents_change_every_key(field: str) -> None:
    assert changed_stages(**{field: CHANGES["study"][field]}) == list(STAGE_KINDS)


def test_the_allocation_changes_the_stages_after_pretraining_only() -> None:
    section = {"posttrain": POST}
    additive, matched = path_keys(**section), path_keys(allocation="matched", **section)
    assert [stage for stage in STAGE_KINDS if additive[stage] != matched[stage]] == ["posttrain", "finetune"]


@pytest.mark.parametrize("stage", ["posttrain", "finetune"])
@pytest.mark.parametrize(
    ("field", "value"), [("rank", 8), ("alpha", 16), ("dropout", 0.1), ("targets", ["lm_head", "o_proj"])]
)
def test_every_lora_setting_changes_the_key_of_its_stage_and_the_keys_below(stage: str, field: str, value: Any) -> None:
    method = {f"{stage}.method": "lora"}
    before, after = path_keys(**method), path_keys(**method, **{f"{stage}.lora": {field: value}})
    changed = [name for name in STAGE_KINDS if before[name] != after[name]]
    assert changed == list(STAGE_KINDS[STAGE_KINDS.index(stage) :])


def test_an_axis_may_set_one_lora_setting_and_leave_the_others_at_their_defaults() -> None:
    tree = tiny_tree(**{"posttrain.method": "lora", "grid": {"posttrain.lora.rank": [8, 64]}})
    default = tiny_tree(**{"posttrain.method": "lora", "grid": {}})
    assert [trial.key("posttrain") == default.trials[0].key("posttrain") for trial in tree.trials] == [False, True]


@pytest.mark.parametrize("stage", STAGE_KINDS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"schedule": "constant"}),
        ({}, {"schedule": {"wsd": 0.5}}),
        ({"schedule": {"wsd": 0.5}}, {"schedule": {"wsd": 0.2}}),
        ({"schedule": "linear"}, {"schedule": {"wsd": 0.5}}),
        ({"min_lr": 1.0}, {"min_lr": 1.0, "floor": "rise"}),
        ({"min_lr": 1.0, "floor": "rise"}, {"min_lr": 1.0, "floor": "rise", "schedule": "linear"}),
        ({"optimizer": "muon"}, {"optimizer": "muon", "decay": "all"}),
    ],
)
def test_every_choice_of_optimisation_that_changes_weights_changes_the_key(
    stage: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    keys = [path_keys(**{f"{stage}.{field}": value for field, value in one.items()}) for one in (before, after)]
    assert [name for name in STAGE_KINDS if keys[0][name] != keys[1][name]] == list(
        STAGE_KINDS[STAGE_KINDS.index(stage) :]
    )


@pytest.mark.parametrize("setting", [{"after_warmup": True}, {"split": "tune"}])
def test_what_early_stopping_counts_and_selects_on_changes_the_key(setting: dict[str, Any]) -> None:
    base = {"posttrain.early_stopping": {"every": 2, "patience": 3}}
    before, after = path_keys(**base), path_keys(**{"posttrain.early_stopping": {"every": 2, "patience": 3} | setting})
    assert [stage for stage in STAGE_KINDS if before[stage] != after[stage]] == ["posttrain", "finetune"]


@given(
    st.fixed_dictionaries(
        {
            "schedule": st.sampled_from(["cosine", "linear", "constant", {"wsd": 0.25}]),
            "floor": st.sampled_from(["lower", "rise"]),
            "min_lr": st.sampled_from([0.0, 1e-3, 3e-3, 1e-2]),
            "decay": st.sampled_from(["matrices", "all"]),
            "weight_decay": st.sampled_from([0.0, 0.1]),
            "optimizer": st.sampled_from(["adamw", "muon"]),
        }
    )
)
def test_a_recipe_has_a_choice_of_optimisation_only_where_it_has_an_effect(fields: dict[str, Any]) -> None:
    tree = tiny_tree(**RICH, **{f"pretrain.{name}": value for name, value in fields.items()})
    recipe = json.loads(tree.stages[tree.trials[0].path[0]].recipe)
    rises = fields["min_lr"] > recipe["lr"] and fields["floor"] == "rise" and fields["schedule"] != "constant"
    flat = not rises and (fields["min_lr"] >= recipe["lr"] or fields["schedule"] == "constant")
    assert recipe["min_lr"] == (recipe["lr"] if flat else fields["min_lr"])
    assert ("floor" in recipe) == rises
    assert ("schedule" in recipe) == (not flat and fields["schedule"] != "cosine")
    assert ("decay" in recipe) == (fields["decay"] == "all" and fields["weight_decay"] > 0)
    assert ("optimizer" in recipe) == (fields["optimizer"] == "muon")


LEARNING_RATES = st.floats(1e-6, 1.0)


@settings(max_examples=40)
@given(first=LEARNING_RATES, second=LEARNING_RATES, stage=st.sampled_from(STAGE_KINDS))
def test_two_learning_rates_share_a_key_only_if_they_are_equal(first: float, second: float, stage: str) -> None:
    keys = [path_keys(**{f"{stage}.lr": rate, f"{stage}.min_lr": 0.0})[stage] for rate in (first, second)]
    assert (keys[0] == keys[1]) == (first == second)


OTHER_EXECUTION = {
    "accelerator": "cpu",
    "devices": 2,
    "precision": "bf16",
    "micro_batch": 1,
    "compile": True,
    "checkpointing": True,
    "deterministic": False,
    "pack": 4,
    "threads": 2,
    "parallel": 3,
    "data": {"part": "1M"},
    "strategy": "fsdp",
    "heldout_every": 5,
    "log_every": 3,
    "log": ["csv"],
    "slurm": {"partition": "low"},
    "save_minutes": 1.5,
    "save_steps": 7,
    "keep_states": True,
    "on_end": "true",
    "stages": {"pretrain": {"devices": 2, "micro_batch": 1}, "finetune": {"precision": "bf16"}},
}


@pytest.mark.parametrize("field", Execution.model_fields)
def test_execution_never_enters_a_key(field: str) -> None:
    assert field in OTHER_EXECUTION, f"add a value for execution.{field} to OTHER_EXECUTION"
    assert changed_stages(execution={field: OTHER_EXECUTION[field]}) == []


def test_the_name_of_the_study_and_its_file_never_enter_a_key() -> None:
    file = check_study(tiny_fields(study="another"), Path("elsewhere/another.yaml"))
    assert expand(file, made_up_facts(file)).stages.keys() == tiny_tree().stages.keys()


def test_the_tokens_of_a_corpus_enter_keys_but_its_name_never_does() -> None:
    renamed = tiny_fields(**{"pretrain.corpus": "prose"})
    renamed["corpora"]["prose"] = renamed["corpora"].pop("general")
    file = check_study(renamed, Path("tiny.yaml"))
    corpora = {(name, 32): CorpusFacts(f"{name}-32", 10**9, 100) for name in ("music", "chemistry")}
    same = Facts("tokenizer", 320, corpora | {("prose", 32): CorpusFacts("general-32", 10**9, 100)})
    other = Facts("tokenizer", 320, corpora | {("prose", 32): CorpusFacts("other tokens", 10**9, 100)})
    assert expand(file, same).stages.keys() == tiny_tree().stages.keys()
    assert not expand(file, other).stages.keys() & tiny_tree().stages.keys()


@pytest.mark.parametrize("corpus", ["general", "music", "chemistry"])
def test_other_tokens_in_a_corpus_change_the_stages_that_read_it_and_the_stages_below(corpus: str) -> None:
    file = check_study(tiny_fields(**RICH), Path("tiny.yaml"))
    facts = made_up_facts(file)
    other = Facts(facts.tokenizer, facts.vocabulary, {**facts.corpora, (corpus, 32): CorpusFacts("other", 10**9, 100)})
    stages = [
        stage.stage for stage in expand(file, other).stages.values() if stage.key not in expand(file, facts).stages
    ]
    assert stages == (["finetune"] if corpus == "chemistry" else list(STAGE_KINDS))


def test_another_tokeniser_changes_every_key() -> None:
    file = check_study(tiny_fields(), Path("tiny.yaml"))
    facts = made_up_facts(file)
    other = Facts("another", facts.vocabulary, facts.corpora)
    assert not expand(file, other).stages.keys() & expand(file, facts).stages.keys()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"posttrain.lr": 1e-5, "posttrain.min_lr": 5e-5}, {"posttrain.lr": 1e-5, "posttrain.min_lr": 1e-5}),
        ({"pretrain.repeat": True}, {"pretrain.repeat": False}),
        ({"pretrain.tokens": 7680}, {"pretrain.tokens": 7680 + 31}),
        ({"pretrain.tokens": "7.68k"}, {"pretrain.tokens": 7680}),
        ({"finetune.seed": 0}, {"finetune.seed": None}),
        ({"model": "smollm2-135m"}, {"model": {"preset": "smollm2-135m", "tied": True, "rope_base": 100_000}}),
        ({"model.vocabulary": 0}, {"model.vocabulary": 320}),
        ({"finetune.weight_decay": 0}, {"finetune.weight_decay": 0.0}),
        ({"finetune.method": "full"}, {}),
        ({"finetune.schedule": "constant"}, {"finetune.min_lr": 1e-3}),
        ({"finetune.method": "lora"}, {"finetune.method": "lora", "finetune.decay": "all"}),
        (
            {"posttrain.early_stopping": {"every": 5, "patience": 3}},
            {"posttrain.early_stopping": {"every": 5, "patience": 3, "after_warmup": True}},
        ),
        (
            {"finetune.method": "lora"},
            {
                "finetune.method": "lora",
                "finetune.lora": {
                    "alpha": 128.0,
                    "targets": ["lm_head", "up_proj", "down_proj", "gate_proj", "o_proj", "o_proj"],
                },
            },
        ),
        (
            {"allocation": "matched", "posttrain": POST, "posttrain.max_tokens": 640},
            {"allocation": "matched", "posttrain": POST, "posttrain.max_tokens": None},
        ),
    ],
    ids=[
        "floor above peak",
        "repeat",
        "part of a sequence",
        "suffix",
        "seed",
        "preset",
        "vocabulary",
        "zero",
        "method",
        "constant",
        "decay of adapters",
        "no evaluation in the warm-up",
        "adapters",
        "matched",
    ],
)
def test_two_ways_to_write_the_same_training_have_the_same_keys(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert path_keys(**first) == path_keys(**second)


def test_attention_across_documents_is_the_default_and_leaves_every_key_as_it_was() -> None:
    assert changed_stages(documents={"attention": "across"}) == []
