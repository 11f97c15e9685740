"""Checkpoints in the store: what their fingerprint is made of, and that nothing outside can change them."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retain.datamodules.corpora.checkpoints.stored import (
    build_checkpoint,
    checkpoint_folder,
    checkpoint_problem,
    open_checkpoint,
)
from retain.datamodules.corpora.checkpoints.weights import INDEX, SINGLE
from retain.datamodules.corpora.known import known_facts, remembered_facts
from retain.datamodules.corpora.prepare import prepare
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.lightning_modules.models import load_model
from retain.sweeps.base.errors import DamageError, StudyError
from retain.sweeps.schema.models import Model
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.data_facts import CheckpointFacts, checkpoint_of
from tests.datamodules.corpora.reading.test_refused_files import not_root
from tests.families import tiny_checkpoint, tiny_tokenizer
from tests.studies import tiny_study

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    return tiny_checkpoint(tmp_path / "given", "qwen3", tokenizer)


def built(checkpoint: Path, name: str = "built", **fields: str) -> CheckpointFacts:
    facts, commit = build_checkpoint(Model(hf=str(checkpoint), **fields), Path(), checkpoint.with_name(name))
    assert commit is None
    return facts


def test_the_facts_are_those_of_the_model(checkpoint: Path, tokenizer: Tokenizer) -> None:
    facts = built(checkpoint)
    assert (facts.family, facts.vocabulary, facts.context) == ("qwen3", 320, 64)
    assert facts.tokenizer == tokenizer.fingerprint
    assert facts.counts is not None
    assert facts.counts.parameters == sum(weight.numel() for weight in load_model(checkpoint).parameters())
    assert open_checkpoint(checkpoint.with_name("built")) == facts


def resharded(folder: Path) -> None:
    load_model(folder).save_pretrained(folder, max_shard_size="30KB")
    (folder / SINGLE).unlink()
    assert len(list(folder.glob("*.safetensors"))) > 1


def without_effect(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name in ("architectures", "transformers_version"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config | {"use_cache": False, "_name_or_path": "elsewhere"}))


@pytest.mark.parametrize(
    "change", [resharded, without_effect, lambda folder: (folder / "README.md").write_text("mine")]
)
def test_neither_the_path_nor_the_files_nor_fields_without_effect_change_the_fingerprint(
    change: Callable[[Path], object], checkpoint: Path
) -> None:
    copy = shutil.copytree(checkpoint, checkpoint.with_name("copy"))
    change(copy)
    assert built(copy, "second").fingerprint == built(checkpoint).fingerprint


def with_other_bits(folder: Path) -> None:
    weights = load_file(folder / SINGLE)
    weights["model.norm.weight"][0] += 1e-6
    save_file(weights, folder / SINGLE, {"format": "pt"})


def in_bf16(folder: Path) -> None:
    weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(folder / SINGLE).items()}
    save_file(weights, folder / SINGLE, {"format": "pt"})


def with_another_base(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e5
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("change", [with_other_bits, in_bf16, with_another_base])
def test_any_change_of_the_content_is_another_fingerprint(change: Callable[[Path], None], checkpoint: Path) -> None:
    copy = shutil.copytree(checkpoint, checkpoint.with_name("copy"))
    change(copy)
    assert built(copy, "second").fingerprint != built(checkpoint).fingerprint


def test_fresh_weights_need_no_files_of_weights(checkpoint: Path) -> None:
    whole = built(checkpoint)
    (checkpoint / SINGLE).unlink()
    fresh = built(checkpoint, "fresh", weights="random")
    assert (fresh.config, fresh.counts) == (whole.config, whole.counts)
    assert not list(checkpoint.with_name("fresh").glob("*.safetensors"))


def test_a_folder_that_changes_later_changes_no_run_and_is_another_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "study", model={"hf": str(checkpoint)}, tokenizer=None)
    file, store = read_study(str(study)), tmp_path / "runs"
    model = checkpoint_of(file.study.model)
    first = prepare(file, store).checkpoints[model]
    kept = (checkpoint_folder(store, first.fingerprint) / SINGLE).read_bytes()
    with (checkpoint / SINGLE).open("r+b") as stream:  # in place, as no careful tool would
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\0\0\0\1")
    second = prepare(file, store).checkpoints[model]
    assert second.fingerprint != first.fingerprint
    assert (checkpoint_folder(store, first.fingerprint) / SINGLE).read_bytes() == kept
    assert checkpoint_problem(store / "checkpoints" / first.fingerprint) is None


@pytest.mark.parametrize("name", [SINGLE, "tokenizer.json", "config.json", "checkpoint.json"])
def test_verify_finds_a_changed_byte_in_any_file(name: str, checkpoint: Path) -> None:
    facts = built(checkpoint)
    folder = checkpoint.with_name("built").rename(checkpoint.with_name(facts.fingerprint))
    assert checkpoint_problem(folder) is None
    content = bytearray((folder / name).read_bytes())
    at = content.index(b'"qwen3"') + 1 if name == "checkpoint.json" else len(content) - 8
    content[at] ^= 1
    (folder / name).write_bytes(content)
    assert "prepare the study's data again" in str(checkpoint_problem(folder))


def pickled(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-100])


def without_a_shard(folder: Path) -> None:
    resharded(folder)
    sorted(folder.glob("*.safetensors"))[0].unlink()


def without_a_tensor(folder: Path) -> None:
    weights = load_file(folder / SINGLE)
    del weights["model.norm.weight"]
    save_file(weights, folder / SINGLE, {"format": "pt"})


def with_a_tensor_of_another_shape(folder: Path) -> None:
    save_file(load_file(folder / SINGLE) | {"model.norm.weight": torch.ones(3)}, folder / SINGLE, {"format": "pt"})


def of_another_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))


def quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))


def an_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def naming_other_folders(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "../../secret.safetensors"}}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            pickled,
            "has only pickled weights (pytorch_model.bin), which could run code; save the model with transformers'",
        ),
        (cut_short, "model.safetensors is cut short; restore the file"),
        (without_a_shard, "lacks model-00001-of-"),
        (without_a_tensor, "the weights lack model.norm.weight (1 missing); restore them"),
        (with_a_tensor_of_another_shape, "model.norm.weight has the shape [3], but config.json implies [32]; restore"),
        (of_another_kind, "unknown family 'mamba'; the families are Llama (llama), Mistral (mistral), "),
        (quantised, "the weights are quantised and cannot be trained; choose the unquantised checkpoint"),
        (an_adapter, "has no config.json; merge the adapter into its model"),
        (naming_other_folders, "names files outside its folder"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_checkpoint_that_cannot_be_used_is_refused_with_the_cure(
    damage: Callable[[Path], None], sentence: str, checkpoint: Path
) -> None:
    damage(checkpoint)
    with pytest.raises(StudyError) as refused:
        built(checkpoint)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_that_may_not_be_read_is_named_and_what_was_prepared_from_it_stays_readable(
    tokenizer: Tokenizer,
) -> None:
    # The folders of pytest are closed to others.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = tiny_study(folder / "study", model={"hf": "mine"})
        for path in (folder, tiny_checkpoint(folder / "study" / "mine", "llama", tokenizer)):
            path.chmod(0o755)
        file = read_study(str(study))
        facts = prepare(file, folder / "runs")
        (folder / "study" / "mine" / SINGLE).chmod(0)
        where = f"tiny.yaml: model.hf: {folder}/study/mine/{SINGLE} cannot be read (Permission denied); ask its owner"
        with not_root():
            with pytest.raises(DamageError) as caught:
                known_facts(file, folder / "runs")
            remembered, remarks = remembered_facts(file, folder / "runs")
        assert str(caught.value).startswith(where)
        assert remembered == facts
        assert [remark.startswith(where) for remark in remarks] == [True]
