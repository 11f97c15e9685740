"""Stages that start from a checkpoint, through the launcher."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from retain.datamodules.corpora.responses.chat import CHATML_TEMPLATE
from retain.datamodules.order.stage_data import heldout_sequences
from retain.launchers.checks.verify import verify_store
from retain.results.store.export import export_run
from retain.results.store.runs import Run, Store
from tests.families import tiny_checkpoint, tiny_tokenizer
from tests.results.runs import set_back
from tests.retain import losses, retain, stages_of, train_here, weights
from tests.studies import leave_out, tiny_study

pytestmark = pytest.mark.filterwarnings("ignore")
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
UNLIKE_LLAMA = ("gemma3_text", "gpt_neox", "gpt2")
"""Families that differ most from Llama: soft-capped logits, fused queries, keys and values, dropout modules of their own."""
KEPT: dict[str, Any] = {
    "tokenizer": None,
    "pretrain.tokens": 2560,
    "pretrain.warmup": 2,
    "pretrain.dropout": 0.1,
    "posttrain.tokens": 1280,
    "posttrain.max_tokens": 2560,
    "posttrain.dropout": 0.1,
    "posttrain.method": "lora",
    "posttrain.lora": {"rank": 4, "alpha": 8},
    "finetune.tokens": 1280,
    "execution": {"accelerator": "cpu", "save_steps": 3, "keep_states": True},
}


def own_loss(folder: Path, sequences: torch.Tensor) -> float:
    """The mean loss of a folder's model, as transformers computes it: all sequences have the same number of predictions."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return float(model(input_ids=sequences, labels=sequences).loss)


@pytest.mark.slow
def test_a_llama_of_transformers_is_trained_exported_and_predicts_what_was_measured(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    # The class in the settings splits text in another way, as that of SmolLM2 does, whose tokeniser splits digits.
    split = [pre_tokenizers.Split("e", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.core.pre_tokenizer = pre_tokenizers.Sequence(split)
    checkpoint = tiny_checkpoint(
        tmp_path / "study" / "llama", "llama", tokenizer, shard="30KB", tie_word_embeddings=True
    )
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    settings |= {"model_max_length": 64, "tokenizer_class": "GPT2Tokenizer"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    (checkpoint / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.6}))
    study = tiny_study(tmp_path / "study", model={"hf": "llama"}, tokenizer=None, grid={}, **{"pretrain.tokens": 2560})
    store = Store(tmp_path / "runs")
    retain("run", study, "--store", store.root, more={"HF_HUB_OFFLINE": "1"})
    runs = {run.spec()["stage"]: run for run in stages_of(store.root)}
    # The checkpoint may go once it is prepared; so may the folder of a done run once it is exported.
    shutil.rmtree(checkpoint)
    folder = export_run(store, runs["finetune"], tmp_path / "exported")
    for split, corpus in runs["finetune"].spec()["evaluation"].items():
        measured = runs["finetune"].losses()["splits"][split]["loss"]
        assert own_loss(folder, heldout_sequences(store.root, corpus)) == pytest.approx(measured, rel=1e-5)
    start = store.root / "checkpoints" / runs["pretrain"].spec()["recipe"]["model"]["start"]
    before = own_loss(start, heldout_sequences(store.root, runs["finetune"].spec()["recipe"]["corpus"]))
    assert before > runs["finetune"].losses()["splits"]["finetuning"]["loss"] + 0.5
    exported = AutoTokenizer.from_pretrained(folder)
    assert (exported.chat_template, exported.model_max_length, exported.eos_token) == (TEMPLATE, 64, "<|endoftext|>")
    text = "the river over every stone"
    assert [exported(text).input_ids] == tokenizer.encode([text])
    assert AutoTokenizer.from_pretrained(start)(text).input_ids != exported(text).input_ids
    generation = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (generation.do_sample, generation.temperature) == (True, 0.6)
    assert verify_store(store, None)[1] == []


def done_runs(store: Path) -> list[Run]:
    return [run for run in stages_of(store) if run.is_done()]


@pytest.mark.slow
def test_runs_of_every_kind_of_family_resume_to_the_same_bits_and_predict_what_was_measured(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    for family in UNLIKE_LLAMA:
        tiny_checkpoint(tmp_path / "study" / family, family, tokenizer)
    # Without pretraining: the first stage trains adapters of the checkpoint, the second one all weights.
    fields = KEPT | {"stages": ["posttrain", "finetune"], "finetune.dropout": 0.1}
    axes = {"model.hf": list(UNLIKE_LLAMA)}
    study = tiny_study(tmp_path / "study", model={"hf": UNLIKE_LLAMA[0]}, grid=axes, **fields)
    undisturbed, store = tmp_path / "undisturbed", tmp_path / "runs"
    states = train_here(leave_out(study, "pretrain"), undisturbed)
    assert [state.state for state in states.values()] == ["done"] * 6
    for run in done_runs(undisturbed):
        for split, corpus in run.spec()["evaluation"].items():
            measured = run.losses()["splits"][split]["loss"]
            assert own_loss(run.model, heldout_sequences(undisturbed, corpus)) == pytest.approx(measured, rel=1e-5)
    shutil.copytree(undisturbed, store, symlinks=True)
    for run in done_runs(store):
        assert set_back(run) > 0
    train_here(study, store)
    assert len(weights(store)) == len(weights(undisturbed))
    assert weights(store) == weights(undisturbed)
    assert losses(store) == losses(undisturbed)


def test_a_study_of_a_checkpoints_architecture_trains_fresh_weights_and_keeps_its_own_chat_template(
    tmp_path: Path,
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "study" / "gpt2", "gpt2", tiny_tokenizer())
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "study" / "gpt2" / "model.safetensors").unlink()
    model = {"hf": "gpt2", "weights": "random"}
    study = tiny_study(tmp_path / "study", **KEPT | {"grid": {"seed": [0, 1]}, "model": model, "finetune.tokens": 256})
    tokenizer = "tokenizer={hf: gpt2, chat_template: chatml}"
    states = train_here(study, tmp_path / "runs", "finetune.warmup=0", tokenizer)
    assert {state.state for state in states.values()} == {"done"}
    assert {AutoTokenizer.from_pretrained(run.model).chat_template for run in done_runs(tmp_path / "runs")} == {
        CHATML_TEMPLATE
    }
    roots = [run for run in done_runs(tmp_path / "runs") if run.spec()["parent"] is None]
    assert [type(AutoModelForCausalLM.from_pretrained(run.model)).__name__ for run in roots] == ["GPT2LMHeadModel"] * 2
    assert roots[0].losses() != roots[1].losses()
