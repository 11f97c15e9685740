"""The fields of a study as the terminal, editors and the shell explain them."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.yaml_text import read_yaml
from retain.sweeps.reference.json_schema import study_schema
from retain.sweeps.reference.paths import all_paths, find_fields
from retain.sweeps.schema.read import STUDIES
from retain.sweeps.schema.search_space import SearchBlock
from retain.sweeps.schema.study import Study
from tests.studies import LINEAR, tiny_fields


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = study_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_every_field_of_a_study_has_a_path_a_type_and_a_meaning() -> None:
    known = all_paths()
    assert set(Study.model_fields) <= set(known)
    assert {"finetune.lr", "execution.slurm.partition", "corpora.NAME.files", "search.prune"} <= set(known)
    assert all(field.meaning and field.type_text for field in known.values())
    assert {f"search.{name}" for name in SearchBlock.model_fields} <= set(known)


def test_a_path_finds_its_field_and_the_fields_below_it_also_of_the_theory() -> None:
    field, below = find_fields("finetune.lr")
    assert field is not None
    assert (field.type_text, field.default, below) == ("number > 0", "required", [])
    seed = find_fields("evaluate.tasks.mine.seed")[0]
    assert seed is not None
    assert seed.default == "1234", "only sizes are written as 1.234k"
    assert find_fields("posttrain.early_stopping")[1][0].path.startswith("posttrain.early_stopping.")
    assert "corpora.web.files" in {field.path for field in find_fields("corpora.web")[1]}
    assert find_fields("model.linear.features")[0] is not None
    assert find_fields()[0] is None


@pytest.mark.parametrize("name", ["midtrain", "sft", "finetune2", "trunk10"])
def test_the_fields_of_a_stage_of_your_own_name_are_explained(name: str) -> None:
    stage, below = find_fields(name)
    assert stage is not None
    assert stage.meaning.startswith("A stage with a name of your own")
    assert {f"{name}.skip", f"{name}.anchor", f"{name}.lr"} <= {field.path for field in below}
    field, strengths = find_fields(f"{name}.anchor")
    assert field is not None
    assert f"{name}.anchor.ewc" in {one.path for one in strengths}
    own = "a stage with a name of your own has no such field"
    with pytest.raises(StudyError, match=rf"{name}\.lrr: {own}; did you mean {name}\.lr\?"):
        find_fields(f"{name}.lrr")
    with pytest.raises(StudyError, match=rf"{name}\.exposure: {own}; retain fields {name} lists what it has"):
        find_fields(f"{name}.exposure")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("fintune.lr", "finetune.lr"),
        ("post_train.lr", "posttrain.lr"),
        ("corpra", "corpora"),
        ("anchor", "finetune.anchor"),
    ],
)
def test_a_typo_in_the_name_of_a_stage_is_no_stage_of_your_own(path: str, meant: str) -> None:
    with pytest.raises(StudyError, match=f"did you mean {meant}\\?"):
        find_fields(path)


def test_an_unknown_path_is_one_sentence_with_the_nearest_field() -> None:
    with pytest.raises(StudyError, match=r"finetune\.lrr: a study has no such field; did you mean finetune\.lr\?"):
        find_fields("finetune.lrr")
    with pytest.raises(StudyError, match=r"partition: a study has no such field; did you mean execution\."):
        find_fields("partition")
    with pytest.raises(StudyError, match=r"finetune\.learning_rate: a study has no such field; write lr"):
        find_fields("finetune.learning_rate")
    with pytest.raises(StudyError, match=r"mine/study\.yaml: .* name one, such as finetune\.lr, and no file"):
        find_fields("mine/study.yaml")
    with pytest.raises(StudyError, match=r"tiny\.yaml: all studies have the same fields"):
        find_fields("tiny.yaml")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_editors_find_no_mistake_in_a_study_of_retain(path: Path, validator: jsonschema.Draft7Validator) -> None:
    assert [error.message for error in validator.iter_errors(read_yaml(path))] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"finetune": {"corpus": "chemistry", "learning_rate": 1e-4}},
        {"allocation": "both"},
        {"execution": {"slurm": {"partitions": "gpu"}}},
        {"corpora": {"general": {"file": "general.txt"}}},
        {"finetune": {"lr": -1}},
    ],
    ids=["unknown field", "unknown word", "unknown field deep down", "unknown field of a corpus", "bound"],
)
def test_editors_mark_mistakes(wrong: dict[str, Any], validator: jsonschema.Draft7Validator) -> None:
    assert validator.is_valid(tiny_fields())
    assert validator.is_valid(LINEAR)
    assert not validator.is_valid({**tiny_fields(), **wrong})


def test_editors_get_a_meaning_for_every_field_and_the_paths_of_axes() -> None:
    definitions = study_schema()["definitions"]
    for section in definitions.values():
        assert all(
            "description" in field or "anyOf" in field or "$ref" in field for field in section["properties"].values()
        )
    assert "finetune.lr" in definitions["Study"]["properties"]["grid"]["properties"]
    assert definitions["Finetune"]["properties"]["lr"]["description"].startswith("The peak learning rate")
