"""What a plan finds wrong with a local checkpoint and its tokeniser, before anything is prepared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import retain
from retain.datamodules.corpora.known import known_facts
from retain.launchers.planning.opened_study import prepare_study
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.tree import expand
from tests.families import tiny_checkpoint, tiny_tokenizer
from tests.studies import tiny_study

CHATS = {"corpora.music": {"files": "music.jsonl", "messages": "messages", "heldout": 0.1}}


def changed(name: str, **fields: Any) -> Callable[[Path], None]:
    """A change of fields of a JSON file of the checkpoint; None removes a field."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | fields
        kept = {field: value for field, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def without_end_of_text(folder: Path) -> None:
    changed("tokenizer_config.json", eos_token=None)(folder)
    changed("config.json", eos_token_id=None)(folder)


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def whole(folder: Path) -> None:
    """Nothing is wrong with the checkpoint."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("given") / "gpt2", "gpt2", tiny_tokenizer())


@pytest.mark.parametrize(
    ("harm", "fields", "sentence"),
    [
        (
            whole,
            {"sequence_length": 128},
            "sequence_length: 128 exceeds the context of 64 of gpt2; lower sequence_length",
        ),
        (
            whole,
            {"tokenizer": {"train": 400}},
            "tokenizer: its 400 entries exceed the 320 rows of the embedding of gpt2; leave tokenizer out",
        ),
        (
            changed("config.json", vocab_size=300),
            {},
            "tokenizer: its 320 entries exceed the 300 rows of the embedding of gpt2; restore its config.json",
        ),
        (
            whole,
            CHATS,
            "corpora.music: the tokeniser gpt2 has no chat template; set tokenizer.chat_template: chatml, as in "
            "tokenizer: {hf: gpt2, chat_template: chatml}",
        ),
        (
            without_end_of_text,
            {},
            "eos_token is missing in tokenizer_config.json or not in the vocabulary; name another",
        ),
        (without("model.safetensors"), {}, "gpt2 has no model.safetensors; save the model with transformers'"),
        (cut_short, {}, "model.safetensors is cut short; restore the file, or choose another checkpoint"),
        (
            changed("config.json", n_embd=30),
            {},
            "transformers cannot load it (ValueError: `embed_dim` must be divisible by",
        ),
        (without("tokenizer.json"), {}, "gpt2 has no tokenizer.json; name another tokeniser, as in {hf: ID}"),
        (
            whole,
            {"posttrain.method": "lora", "posttrain.lora": {"targets": ["q_proj"]}},
            "posttrain.lora.targets: GPT-2 has one matrix for q_proj, k_proj, v_proj; name all three, or none of them",
        ),
    ],
)
def test_a_plan_says_what_is_wrong_with_an_unprepared_checkpoint_in_one_sentence(
    harm: Callable[[Path], None], fields: dict[str, Any], sentence: str, checkpoint: Path, tmp_path: Path
) -> None:
    study = tiny_study(tmp_path, model={"hf": "gpt2"}, **{"tokenizer": None} | fields)
    copy = tmp_path / "gpt2"
    copy.mkdir()
    for file in checkpoint.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    harm(copy)
    file = read_study(str(study))
    with pytest.raises((StudyError, MissingResourceError)) as refused:
        expand(file, known_facts(file, tmp_path / "runs"))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": {"hf": "gpt2", "revision": "v1.0"}, "tokenizer": None}, "model.hf"),
        ({"tokenizer": {"hf": "gpt2", "revision": "v1.0"}}, "tokenizer.hf"),
        ({"corpora.music": {"hf": "gpt2", "revision": "v1.0"}}, "corpora.music: hf"),
    ],
)
def test_a_plan_refuses_a_revision_of_a_local_folder(
    fields: dict[str, Any], field: str, checkpoint: Path, tmp_path: Path
) -> None:
    study = tiny_study(tmp_path, **fields)
    (tmp_path / "gpt2").symlink_to(checkpoint)
    with pytest.raises(StudyError) as refused:
        retain.plan(str(study), store=tmp_path / "runs")
    assert str(refused.value) == (
        f"tiny.yaml: {field}: gpt2 is a local folder, which has no revisions; remove revision: v1.0, or name an id on "
        "Hugging Face"
    )


@pytest.mark.parametrize("weights", [None, "random"])
def test_a_plan_costs_the_same_before_and_after_a_local_checkpoint_is_prepared(
    weights: str | None, checkpoint: Path, tmp_path: Path
) -> None:
    model = {"hf": str(checkpoint)} | ({"weights": weights} if weights else {})
    lora = {"posttrain.method": "lora", "posttrain.lora": {"rank": 4}}
    study, store = tiny_study(tmp_path, model=model, tokenizer=None, **lora), tmp_path / "runs"
    before = retain.plan(str(study), store=store)
    prepare_study(str(study), [], store)
    after = retain.plan(str(study), store=store)
    assert (before.provisional, after.provisional) == (True, False)
    assert not [note for note in before.notes if "model.hf" in note]
    costs = [(one.totals.flops, one.totals.gpu_hours, one.totals.disk_bytes) for one in (before, after)]
    assert costs[0] == costs[1]
    assert min(costs[0]) > 0
