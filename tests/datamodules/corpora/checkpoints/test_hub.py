"""Checkpoints from a hub on localhost: fetched once at one commit; after that, nothing asks the hub."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from retain.datamodules.corpora.checkpoints.stored import checkpoint_folder
from retain.datamodules.corpora.known import known_facts
from retain.datamodules.corpora.prepare import prepare
from retain.datamodules.corpora.tokenizer import load_tokenizer
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.read import read_study
from tests.datamodules.corpora.hub_server import commit_of, hub
from tests.families import tiny_checkpoint, tiny_tokenizer
from tests.retain import retain, retain_json
from tests.studies import tiny_study

NAME, PICKLED = "some/model", "some/pickle"
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables of a hub with a checkpoint in several files, and one with pickled weights alone."""
    folder = tmp_path_factory.mktemp("hub")
    whole = tiny_checkpoint(folder / "models" / NAME, "gpt2", tiny_tokenizer(), shard="30KB")
    # As in the repository of GPT-2: the tokeniser's settings name no end of text, and other formats lie beside.
    (whole / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))
    (whole / "pytorch_model.bin").write_bytes(b"never read")
    other = tiny_checkpoint(folder / "models" / PICKLED, "gpt2", tiny_tokenizer())
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    with hub(folder) as address:
        yield {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}


@pytest.mark.slow
def test_a_checkpoint_of_the_hub_is_fetched_at_one_commit_and_never_asked_for_again(
    online: dict[str, str], tmp_path: Path
) -> None:
    study = tiny_study(tmp_path / "study", model={"hf": NAME}, tokenizer=None)
    store = tmp_path / "runs"
    document = retain_json("data", study, "--store", store, more=online)
    (checkpoint,) = document["checkpoints"]
    assert (checkpoint["name"], checkpoint["family"]) == (NAME, "gpt2")
    folder = checkpoint_folder(store, checkpoint["fingerprint"])
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert not (folder / "pytorch_model.bin").exists()
    assert load_tokenizer(folder).end_of_text == "<|endoftext|>"
    notes = [json.loads(path.read_text()) for path in (store / "prepared").glob("*.json")]
    assert [note["commit"] for note in notes if "checkpoint" in note["source"]] == [commit_of(NAME)]
    facts = known_facts(read_study(str(study)), store)
    assert facts.prepared
    # A copy of the same content elsewhere is the same checkpoint.
    copy = tiny_study(tmp_path / "copy", study="copy", model={"hf": str(folder)}, tokenizer=None)
    again = prepare(read_study(str(copy)), store)
    assert [*again.checkpoints.values()] == [*facts.checkpoints.values()]
    assert again.tokenizer == facts.tokenizer


def test_a_checkpoint_with_only_pickled_weights_is_refused_before_they_are_downloaded(
    online: dict[str, str], tmp_path: Path
) -> None:
    study = tiny_study(tmp_path / "study", model={"hf": PICKLED}, tokenizer=None)
    refused = retain("data", study, "--store", tmp_path / "runs", code=2, more=online).stderr.strip().splitlines()[-1]
    assert f"tiny.yaml: model.hf: {PICKLED} has no model.safetensors; save the model with" in refused


def test_without_a_hub_an_unprepared_checkpoint_is_a_missing_resource_and_a_plan_is_provisional(tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "study", model={"hf": NAME}, tokenizer=None)
    assert not known_facts(read_study(str(study)), tmp_path / "runs").prepared
    refused = retain("data", study, "--store", tmp_path / "runs", code=3, more=NOWHERE).stderr.strip().splitlines()[-1]
    assert "model.hf: some/model: the hub does not answer" in refused
    assert refused.endswith(f"; {tmp_path / 'study' / NAME} is not a folder either")
    local = tiny_study(tmp_path / "study", study="local", model={"hf": "./nowhere"}, tokenizer=None)
    with pytest.raises(MissingResourceError) as missing:
        known_facts(read_study(str(local)), tmp_path / "runs")
    assert str(missing.value) == "local.yaml: model.hf: ./nowhere is not a folder; correct the path"
