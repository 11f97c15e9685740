"""Study files, overrides, and the errors in them: one sentence with file, field and cure."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.axes import get_field
from retain.sweeps.schema.read import STUDIES, StudyFile, read_study
from retain.sweeps.schema.study import Study
from tests.studies import tiny_fields, tiny_study


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_study(tmp_path)


def error_of(action: Callable[[], object]) -> str:
    with pytest.raises(StudyError) as caught:
        action()
    assert caught.value.exit_code == 2
    return str(caught.value)


def value(file: StudyFile, field: str) -> Any:
    return get_field(file.study, field)


def test_a_study_is_found_by_path_and_by_name(path: Path) -> None:
    assert read_study(str(path)).path == path
    assert read_study("laptop").path == STUDIES / "laptop.yaml"
    assert read_study(str(path)).folder == path.parent


@pytest.mark.parametrize("name", [file.stem for file in sorted(STUDIES.glob("*.yaml"))])
def test_every_shipped_study_is_valid_and_has_the_name_of_its_file(name: str) -> None:
    assert read_study(name).study.study == name


def test_a_study_without_a_name_takes_the_name_of_its_file(tmp_path: Path) -> None:
    fields = tiny_fields()
    del fields["study"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    assert read_study(str(tmp_path / "mine.yaml")).study.study == "mine"


def test_numbers_may_have_suffixes_exponents_and_underscores(path: Path) -> None:
    file = read_study(str(path), ["pretrain.tokens=8.7B", "finetune.lr=5e-5", "posttrain.tokens=1_000"])
    assert value(file, "pretrain.tokens") == 8_700_000_000
    assert value(file, "finetune.lr") == 5e-5
    assert value(file, "posttrain.tokens") == 1000


def test_an_override_with_one_value_sets_the_field_and_removes_it_from_the_grid(path: Path) -> None:
    file = read_study(str(path), ["pretrain.exposure=0.25", "finetune.weight_decay=0"])
    assert value(file, "pretrain.exposure") == 0.25
    assert value(file, "finetune.weight_decay") == 0
    assert list(file.axes) == ["finetune.lr"]


def test_an_override_with_a_list_adds_an_axis_or_replaces_its_values(path: Path) -> None:
    file = read_study(str(path), ["seed=[0, 1, 2]", "pretrain.exposure=[0.5]"])
    assert file.axes == {"pretrain.exposure": [0.5], "finetune.lr": [5e-4, 2e-3], "seed": [0, 1, 2]}


def test_yaml_anchors_can_be_merged_and_fields_beside_them_take_precedence(tmp_path: Path) -> None:
    path = tiny_study(tmp_path)
    path.write_text(path.read_text().replace("finetune:\n", "finetune:\n  <<: {corpus: music, dropout: 0.1}\n", 1))
    finetune = read_study(str(path)).study.finetune
    assert (finetune.corpus, finetune.dropout) == ("chemistry", 0.1)


def test_an_override_of_the_grid_sets_its_axis(path: Path) -> None:
    assert read_study(str(path), ["grid.finetune.lr=[1e-3]"]).axes["finetune.lr"] == [1e-3]


def test_later_overrides_win(path: Path) -> None:
    file = read_study(str(path), ["seed=[1, 2]", "seed=3", "finetune.lr=1e-4", "finetune.lr=[1e-3]"])
    assert value(file, "seed") == 3
    assert file.axes["finetune.lr"] == [1e-3]
    assert "seed" not in file.axes


@pytest.mark.parametrize(
    ("override", "field", "expected"),
    [
        ("model=laptop", "model.preset", "laptop"),
        ("model.layers=3", "model.layers", 3),
        ("posttrain.early_stopping={every: 5, patience: 2}", "posttrain.early_stopping.patience", 2),
        ("finetune.betas=[0.9, 0.99]", "finetune.betas", (0.9, 0.99)),
        ("execution.devices=2", "execution.devices", 2),
        ("tokenizer={hf: HuggingFaceTB/SmolLM2-135M}", "tokenizer.train", None),
        ("study=another", "study", "another"),
        ("pretrain.repeat=true", "pretrain.repeat", True),
        ("posttrain.max_tokens=null", "posttrain.max_tokens", None),
    ],
)
def test_an_override_reaches_any_field(path: Path, override: str, field: str, expected: Any) -> None:
    assert value(read_study(str(path), [override]), field) == expected


def test_an_override_reaches_into_a_corpus(path: Path) -> None:
    file = read_study(str(path), ["corpora.music.files=[a.txt, b.txt]", "corpora.general.tokens=5k"])
    assert file.study.corpora["music"].files == ["a.txt", "b.txt"]
    assert file.study.corpora["general"].tokens == 5000


def test_an_override_changes_one_number_of_a_preset_and_keeps_the_others() -> None:
    model = read_study("laptop", ["model.layers=2"]).study.model.architecture()
    assert (model.layers, model.hidden) == (2, 128)


def test_axis_values_are_checked_and_converted_to_their_type(path: Path) -> None:
    file = read_study(str(path), ["posttrain.tokens=[1280, 2.56k]", "model=[laptop, smollm2-135m]"])
    assert file.axes["posttrain.tokens"] == [1280, 2560]
    assert [model.preset for model in file.axes["model"]] == ["laptop", "smollm2-135m"]


EXPOSURE = (
    "pretrain.exposure: 1.5 is more than one pass over the post-training corpus; "
    "keep it within [0, 1] or set pretrain.repeat: true"
)
INVALID_OVERRIDES = [
    ("pretrain.exposure=yes", "pretrain.exposure: 'yes' is not a number; write a number, such as 3 or 5e-5"),
    ("seed=0,1,2", "seed: '0,1,2' is not a number; write several values as a list: [0, 1, 2]"),
    ("finetune.lr=1e-3, 2e-3", "finetune.lr: '1e-3, 2e-3' is not a number; write several values as a list: [1e-3, 2e-3]"),
    ("pretrain.tokens=5k,10k", "pretrain.tokens: '5k,10k' is not a size; write several values as a list: [5k, 10k]"),
    ("pretrain.tokens=5,000", "pretrain.tokens: '5,000' is not a size; write 5000"),
    ("seed=[on, off]", "grid.seed: 'on' is not a number; write a number"),
    ("corpora.general.files=[]", "corpora.general.files: the list is empty; name a path"),
    ("corpora.general.split=test", "corpora.general.split: valid only for hf sources; remove split"),
    ("model.rope_base=-1", "model.rope_base: must be greater than 0 (got -1)"),
    ("pretrain.exposur=0.5", "pretrain.exposur: unknown field; did you mean exposure?"),
    (
        "posttrain.early_stopping.stop=2",
        "posttrain.early_stopping.every: this field is required; add it (retain fields explains what it takes)",
    ),
    ("corpora.music.file=a", "corpora.music.file: unknown field; did you mean files?"),
    ("wrong=1", "wrong: unknown field; the known fields are study, model"),
    ("pretrain.exposure=1.5", EXPOSURE),
    ("pretrain.exposure=-0.5", "pretrain.exposure: must be at least 0 (got -0.5)"),
    ("pretrain.exposure=[0, 1.5]", "grid.pretrain.exposure: 1.5 is more than one pass"),
    ("pretrain.exposure=.nan", "pretrain.exposure: expected a finite number (got nan)"),
    ("finetune.lr=[1e-4, 0]", "grid.finetune.lr: must be greater than 0 (got 0)"),
    ("finetune.lr=[]", "grid.finetune.lr: an axis needs at least one value"),
    ("finetune.lr=[1e-4, 0.0001]", "grid.finetune.lr: 0.0001 is listed twice"),
    ("finetune.lrr=[1, 2]", "grid.finetune.lrr: unknown field; did you mean lr?"),
    ("execution.devices=[1, 2]", "grid.execution.devices: execution cannot be an axis; write a second study file"),
    ("pretrain.tokens=1.5", "pretrain.tokens: 1.5 is not a size; write a whole number such as 1000, 200k, 300M or 8.7B"),
    ("pretrain.batch=0", "pretrain.batch: must be greater than 0 (got 0)"),
    ("pretrain.corpus=poems", "pretrain.corpus: unknown corpus 'poems'; the corpora are general, music, chemistry"),
    ("corpora.music={}", "corpora.music: name exactly one source: package, files, or hf"),
    ("corpora.music={hf: a, package: b}", "corpora.music: name exactly one source"),
    ("corpora.general.separator=''", "corpora.general.separator: the text is empty; write at least one letter"),
    ("corpora.music.heldout=0", "corpora.music.heldout: must be greater than 0 (got 0)"),
    ("tokenizer={}", "tokenizer: give either train: ENTRIES or hf: ID"),
    ("model=gpt2", "model: unknown preset 'gpt2'; the presets are laptop, smollm2-135m, smollm2-1b; a checkpoint is"),
    (
        "model={layers: 2}",
        "model: without a preset, hidden, heads, kv_heads, mlp, vocabulary, tied, context must be given; or name one, as in",
    ),
    ("model.heads=3", "model: heads must divide hidden, and kv_heads must divide heads"),
    ("model.heads=32", "model: hidden / heads must be even, for rotary positions"),
    ("posttrain.method=qlora", "posttrain.method: unknown value (got 'qlora'); write full or lora"),
    ("posttrain.lora.rank=8", "posttrain.lora: valid only with method: lora; set method: lora, or remove lora"),
    ("finetune.lora.targets=[mlp]", "finetune.lora.targets.0: unknown value (got 'mlp'); write q_proj, k_proj,"),
    ("pretrain.exposure_schedule=soon", "pretrain.exposure_schedule: invalid schedule 'soon'; write uniform, early, late"),
    ("execution.compile=maybe", "execution.compile: unknown value (got 'maybe'); write auto, true or false"),
    ("search={finetune.lr: 1}", "search.axes: this field is required; add it (retain fields explains what it takes)"),
    ("study=a b", "study: 'a b' is not a name; write up to 200 letters, digits, dots, underscores and hyphens"),
    ("pretrain=5", "pretrain: expected a mapping of fields, as in {field: value} (got 5)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "sentence"), INVALID_OVERRIDES, ids=[override for override, _ in INVALID_OVERRIDES]
)
def test_an_invalid_value_is_one_sentence_with_file_field_and_cure(path: Path, override: str, sentence: str) -> None:
    message = error_of(lambda: read_study(str(path), [override]))
    assert message.startswith(f"tiny.yaml: {sentence}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("finetune.lr", "'finetune.lr': invalid override; write path=value, for instance pretrain.exposure=0.5"),
        ("=1", "'=1': invalid override; write path=value"),
        ("finetune.lr=[1", "'finetune.lr=[1': invalid YAML: a bracket or a comma is missing"),
        (
            "seed=[0,",
            "'seed=[0,': invalid YAML: a bracket or a comma is missing or too many; quote an override that has",
        ),
        (
            "seed.first=1",
            "'seed.first=1': seed is not a mapping, so it has no field first; give a value for all of seed",
        ),
    ],
)
def test_an_error_names_the_override_that_cannot_be_read(tmp_path: Path, override: str, sentence: str) -> None:
    path = tiny_study(tmp_path, seed=0)
    assert error_of(lambda: read_study(str(path), [override])).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pretrain: [", "bad.yaml: invalid YAML in line 1: a bracket or a comma is missing"),
        ("seed: 1\nseed: 2\n", "bad.yaml: invalid YAML in line 2: seed appears twice; remove one of them"),
        ("- a\n- b\n", "bad.yaml: expected a mapping of fields, but the file holds list"),
        ("", "bad.yaml: expected a mapping of fields, but the file holds nothing"),
        ("study: bad\n", "bad.yaml: model: this field is required; add it (retain fields explains what it takes)"),
    ],
)
def test_the_error_of_a_file_that_is_not_a_study_names_the_file(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    message = error_of(lambda: read_study(str(tmp_path / "bad.yaml")))
    assert message.startswith(sentence)
    assert "\n" not in message


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert "bad.yaml: cannot read the file" in error_of(lambda: read_study(str(tmp_path / "bad.yaml")))


def test_a_grid_that_is_not_a_mapping_is_an_error_with_any_override(tmp_path: Path) -> None:
    path = tiny_study(tmp_path, grid=["pretrain.exposure"])
    for overrides in ([], ["seed=1"], ["seed=[1, 2]"]):
        message = error_of(lambda given=overrides: read_study(str(path), given))
        assert message.startswith("tiny.yaml: grid: expected a mapping of axes")


def test_the_error_of_an_unknown_study_names_the_nearest_or_all_known_ones(tmp_path: Path) -> None:
    assert error_of(lambda: read_study("lapto")).endswith(
        "not found, neither as a file nor in sweeps/studies; did you mean laptop?"
    )
    assert "; the studies are chat, figure10-12, " in error_of(lambda: read_study(str(tmp_path / "absent.yaml")))
    assert "not found, neither as a file" in error_of(lambda: read_study(str(tmp_path)))


def test_a_study_file_beside_the_name_is_suggested(path: Path, tmp_path: Path) -> None:
    for name in ("tiny", "tiny.yml", "tinny.yaml"):
        assert error_of(lambda name=name: read_study(str(tmp_path / name))).endswith(f"did you mean {path}?")


def test_an_override_without_a_study_before_it_says_so() -> None:
    assert error_of(lambda: read_study("seed=1")) == "seed=1: an override needs a study before it; name the study first"


def test_a_stage_is_left_out_by_an_override_of_the_chain_and_one_of_its_section(path: Path) -> None:
    study = read_study(str(path), ["stages=[pretrain, finetune]", "posttrain=null", "pretrain.exposure=0"]).study
    assert isinstance(study, Study)
    assert (study.stages, study.posttrain) == (("pretrain", "finetune"), None)
    assert "posttrain: the section is null" in error_of(lambda: read_study(str(path), ["posttrain=null"]))


def test_the_sequences_of_ewc_may_be_set_once_for_an_axis_of_its_strength(path: Path) -> None:
    anchor, axis = "finetune.anchor.sequences=16", "finetune.anchor.ewc=[1, 2]"
    assert read_study(str(path), [axis, anchor]).axes["finetune.anchor.ewc"] == [1, 2]
    assert "add ewc, or remove sequences" in error_of(lambda: read_study(str(path), [anchor]))
