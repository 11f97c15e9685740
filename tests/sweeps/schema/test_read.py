from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.axes import get_field
from retain.sweeps.schema.read import STUDIES, StudyFile, read_study
from tests.studies import tiny_fields, tiny_study


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_study(tmp_path)


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(StudyError) as refused:
        action()
    assert refused.value.exit_code == 2
    return str(refused.value)


def value(file: StudyFile, field: str) -> Any:
    return get_field(file.study, field)


def test_a_study_is_found_by_its_path_and_by_its_name(path: Path) -> None:
    assert read_study(str(path)).path == path
    assert read_study("laptop").path == STUDIES / "laptop.yaml"
    assert read_study(str(path)).folder == path.parent


@pytest.mark.parametrize("name", [file.stem for file in sorted(STUDIES.glob("*.yaml"))])
def test_every_study_that_comes_with_retain_is_a_right_one_named_after_its_file(name: str) -> None:
    assert read_study(name).study.study == name


def test_a_study_without_a_name_takes_its_files(tmp_path: Path) -> None:
    fields = tiny_fields()
    del fields["study"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    assert read_study(str(tmp_path / "mine.yaml")).study.study == "mine"


def test_numbers_may_be_written_as_people_write_them(path: Path) -> None:
    file = read_study(str(path), ["pretrain.tokens=8.7B", "finetune.lr=5e-5", "posttrain.tokens=1_000"])
    assert value(file, "pretrain.tokens") == 8_700_000_000
    assert value(file, "posttrain.tokens") == 1000


def test_an_override_with_one_value_sets_the_field_and_takes_it_off_the_grid(path: Path) -> None:
    file = read_study(str(path), ["pretrain.exposure=0.25", "finetune.weight_decay=0"])
    assert value(file, "pretrain.exposure") == 0.25
    assert value(file, "finetune.weight_decay") == 0
    assert list(file.axes) == ["finetune.lr"]


def test_an_override_with_a_list_makes_an_axis_or_replaces_its_values(path: Path) -> None:
    file = read_study(str(path), ["seed=[0, 1, 2]", "pretrain.exposure=[0.5]"])
    assert file.axes == {"pretrain.exposure": [0.5], "finetune.lr": [5e-4, 2e-3], "seed": [0, 1, 2]}


def test_anchors_of_yaml_can_be_merged_and_fields_beside_them_count(tmp_path: Path) -> None:
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


def test_an_override_changes_numbers_of_a_preset_and_keeps_the_others() -> None:
    model = read_study("laptop", ["model.layers=2"]).study.model.architecture()
    assert (model.layers, model.hidden) == (2, 128)


def test_axis_values_are_checked_and_brought_to_their_type(path: Path) -> None:
    file = read_study(str(path), ["posttrain.tokens=[1280, 2.56k]", "model=[laptop, smollm2-135m]"])
    assert file.axes["posttrain.tokens"] == [1280, 2560]
    assert [model.preset for model in file.axes["model"]] == ["laptop", "smollm2-135m"]


EXPOSURE = (
    "pretrain.exposure: 1.5 is more than one pass over the post-training corpus; "
    "keep it within [0, 1] or set pretrain.repeat: true"
)
BAD_OVERRIDES = [
    ("pretrain.exposure=yes", "pretrain.exposure: yes is not a value for this field; write a number"),
    ("seed=[on, off]", "grid.seed: seed: yes is not a value for this field"),
    ("corpora.general.files=[]", "corpora.general.files: the list is empty; name a path"),
    ("corpora.general.split=test", "corpora.general.split: this is for hf sources only; take it out"),
    ("model.rope_base=-1", "model.rope_base: Input should be greater than 0 (it is -1)"),
    ("pretrain.exposur=0.5", "pretrain.exposur: unknown field; did you mean exposure?"),
    ("posttrain.early_stopping.stop=2", "posttrain.early_stopping.every: this field must be given"),
    ("corpora.music.file=a", "corpora.music.file: unknown field; did you mean files?"),
    ("wrong=1", "wrong: unknown field; the fields here are study, model"),
    ("pretrain.exposure=1.5", EXPOSURE),
    ("pretrain.exposure=-0.5", "pretrain.exposure: Input should be greater than or equal to 0 (it is -0.5)"),
    ("pretrain.exposure=[0, 1.5]", "grid.pretrain.exposure: pretrain.exposure: 1.5 is more than one pass"),
    ("pretrain.exposure=.nan", "pretrain.exposure: Input should be a finite number"),
    ("finetune.lr=[1e-4, 0]", "grid.finetune.lr: finetune.lr: Input should be greater than 0 (it is 0)"),
    ("finetune.lr=[]", "grid.finetune.lr: an axis needs at least one value"),
    ("finetune.lr=[1e-4, 0.0001]", "grid.finetune.lr: 0.0001 is listed twice"),
    ("finetune.lrr=[1, 2]", "grid.finetune.lrr: finetune.lrr: unknown field; did you mean lr?"),
    ("execution.devices=[1, 2]", "grid.execution.devices: execution cannot be an axis; make a second study file"),
    ("pretrain.tokens=1.5", "pretrain.tokens: 1.5 is not a size; write a whole number such as 1000, 200k, 300M or 8.7B"),
    ("pretrain.batch=0", "pretrain.batch: Input should be greater than 0 (it is 0)"),
    ("pretrain.corpus=poems", "pretrain.corpus: 'poems' is not among corpora (general, music, chemistry)"),
    ("corpora.music={}", "corpora.music: name exactly one source: package, files, or hf"),
    ("corpora.music={hf: a, package: b}", "corpora.music: name exactly one source"),
    ("corpora.general.separator=''", "corpora.general.separator: String should have at least 1 character"),
    ("corpora.music.heldout=0", "corpora.music.heldout: Input should be greater than 0 (it is 0)"),
    ("tokenizer={}", "tokenizer: give either train: ENTRIES or hf: ID"),
    ("model=gpt2", "model: 'gpt2' is no preset; the presets are laptop, smollm2-135m, smollm2-1b"),
    ("model={layers: 2}", "model: without a preset, hidden, heads, kv_heads, mlp, vocabulary, tied, context must be given"),
    ("model.heads=3", "model: heads must divide hidden, and kv_heads must divide heads"),
    ("model.heads=32", "model: hidden / heads must be even, for rotary positions"),
    ("posttrain.method=qlora", "posttrain.method: Input should be 'full' or 'lora' (it is 'qlora')"),
    ("posttrain.lora.rank=8", "posttrain.lora: these settings are for method: lora; set that too, or take them out"),
    ("finetune.lora.targets=[mlp]", "finetune.lora.targets.0: Input should be 'q_proj', 'k_proj',"),
    ("pretrain.exposure_schedule=soon", "pretrain.exposure_schedule: 'soon' is no schedule; write uniform, early, late"),
    ("execution.compile=maybe", "execution.compile: 'maybe' is neither auto nor true nor false"),
    ("search={finetune.lr: 1}", "search.axes: this field must be given"),
    ("study=a b", "study: String should match pattern"),
    ("pretrain=5", "pretrain: Input should be a valid dictionary or instance of Pretrain (it is 5)"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "sentence"), BAD_OVERRIDES, ids=[override for override, _ in BAD_OVERRIDES])
def test_a_wrong_value_is_refused_in_a_sentence_with_file_field_and_cure(
    path: Path, override: str, sentence: str
) -> None:
    message = refusal(lambda: read_study(str(path), [override]))
    assert message.startswith(f"tiny.yaml: {sentence}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("finetune.lr", "'finetune.lr': an override is written path=value, for instance pretrain.exposure=0.5"),
        ("=1", "'=1': an override is written path=value"),
        ("finetune.lr=[1", "'finetune.lr=[1': the value is not YAML; quote it"),
        ("seed.first=1", "'seed.first=1': seed is not a mapping, so it has no field first"),
    ],
)
def test_an_override_that_cannot_be_read_is_named(tmp_path: Path, override: str, sentence: str) -> None:
    path = tiny_study(tmp_path, seed=0)
    assert refusal(lambda: read_study(str(path), [override])).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pretrain: [", "bad.yaml: not YAML: "),
        ("seed: 1\nseed: 2\n", "bad.yaml: not YAML: seed is given twice"),
        ("- a\n- b\n", "bad.yaml: a study is a mapping of fields; this file holds list"),
        ("", "bad.yaml: a study is a mapping of fields; this file holds NoneType"),
        ("study: bad\n", "bad.yaml: model: this field must be given"),
    ],
)
def test_a_file_that_is_no_study_is_refused_with_its_name(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    message = refusal(lambda: read_study(str(tmp_path / "bad.yaml")))
    assert message.startswith(sentence)
    assert "\n" not in message


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert "bad.yaml: cannot be read" in refusal(lambda: read_study(str(tmp_path / "bad.yaml")))


def test_a_grid_that_is_no_mapping_is_refused_whatever_is_overridden(tmp_path: Path) -> None:
    path = tiny_study(tmp_path, grid=["pretrain.exposure"])
    for overrides in ([], ["seed=1"], ["seed=[1, 2]"]):
        message = refusal(lambda given=overrides: read_study(str(path), given))
        assert message.startswith("tiny.yaml: grid: must be a mapping of axes")


def test_an_unknown_study_is_refused_with_the_known_ones_or_the_nearest(tmp_path: Path) -> None:
    assert refusal(lambda: read_study("lapto")).endswith("no such study in sweeps/studies; did you mean laptop?")
    assert "; the studies are figure10-12, " in refusal(lambda: read_study(str(tmp_path / "absent.yaml")))
    assert "no such study file" in refusal(lambda: read_study(str(tmp_path)))
