"""Studies with responses, conversations and attention within documents, from the command line to verified runs."""

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from retain.datamodules.corpora.prepared import packed_corpus
from retain.datamodules.corpora.responses.chat import CHATML_TEMPLATE
from retain.datamodules.order.stage_data import heldout_sequences
from retain.launchers.checks.verify import verify_store
from retain.results.store.runs import Store
from tests.retain import losses, retain_here, retain_json, stages_of, train_here, train_killed, weights
from tests.studies import WORDS, tiny_study

STUDY: dict[str, Any] = {
    "tokenizer": {"train": 330, "chat_template": "chatml"},
    "corpora.music": {"files": "chat.jsonl", "messages": "messages", "heldout": 0.1},
    "corpora.chemistry": {
        "files": "tasks.jsonl",
        "prompt": "Q: {question}\nA:",
        "response": " {answer}",
        "heldout": {"files": "held.jsonl"},
    },
    "documents": {"attention": "within"},
    "grid": {},
    "pretrain.exposure": 1,
    "pretrain.tokens": 8960,
    "pretrain.warmup": 2,
    "posttrain.tokens": 1280,
    "posttrain.max_tokens": 2560,
    "finetune.tokens": 2560,
    "execution": {"save_steps": 3},
}


def objective_study(folder: Path, **overrides: Any) -> Path:
    """Write the study with its corpora: conversations of several turns, tasks, and tasks that are held out."""
    draw, words = random.Random(0), WORDS["music"].split()

    def some(count: int) -> str:
        return " ".join(draw.choices(words, k=count))

    def conversation(number: int) -> Mapping[str, Any]:
        turns = [("system", "hi")] * (number % 2) + [("user", f"{number} {some(4)}"), ("assistant", some(9))]
        more = [("user", some(3)), ("assistant", some(6))] * (number % 3 == 0)
        return {"messages": [{"role": role, "content": content} for role, content in turns + more]}

    def task(number: int) -> Mapping[str, Any]:
        return {"question": f"{number} {some(5)}", "answer": some(12)}

    tasks = [task(number) for number in range(330)]
    study = tiny_study(folder, **STUDY | overrides)
    for name, records in (
        ("chat", [conversation(number) for number in range(250)]),
        ("tasks", tasks),
        ("held", tasks[:40]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return study


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The study, and its store, trained with all checkpoints kept."""
    folder = tmp_path_factory.mktemp("objectives")
    study = objective_study(folder / "study")
    train_here(study, folder / "runs", "execution.keep_states=true")
    return study, folder / "runs"


def corpora_of(store: Path) -> dict[str, str]:
    """The fingerprints of the corpora by role."""
    (last,) = (run for run in stages_of(store) if run.spec()["stage"] == "finetune")
    evaluation: dict[str, str] = last.spec()["evaluation"]
    return evaluation


def test_a_run_with_masks_and_attention_within_documents_is_verified(calm: tuple[Path, Path]) -> None:
    _, store = calm
    assert {run.state().state for run in stages_of(store)} == {"done"}
    assert verify_store(Store(store), None) == (3, [])
    assert all(run.spec()["recipe"]["documents"] == {"attention": "within"} for run in stages_of(store))


def test_verify_finds_a_changed_mask_even_if_the_corpus_says_that_it_is_whole(
    calm: tuple[Path, Path], tmp_path: Path
) -> None:
    store = shutil.copytree(calm[1], tmp_path / "runs")
    mask = store / "corpora" / corpora_of(store)["finetuning"] / "train.mask"
    content = mask.read_bytes()
    mask.write_bytes(bytes(byte ^ 1 for byte in content))
    problems = [problem.what for problem in verify_store(Store(store), None)[1]]
    assert any("train.mask is damaged" in problem for problem in problems)
    assert any(
        "the tokens that the run consumed up to its end are not those of its recipe" in what for what in problems
    )


@torch.no_grad()
def loss_of_documents(model: Any, sequence: torch.Tensor, end: int) -> tuple[float, int]:
    """The summed loss of the predicted tokens of a sequence, each document evaluated alone, and their number."""
    tokens, losses = sequence.maximum(~sequence), []
    begin = 0
    for place in range(len(tokens)):
        if tokens[place] == end or place == len(tokens) - 1:
            logits = model(input_ids=tokens[None, begin : place + 1]).logits[0]
            targets = torch.where(sequence >= 0, tokens, -100)[begin + 1 : place + 2]
            kept = logits[: len(targets)]
            losses.append(functional.cross_entropy(kept, targets, ignore_index=-100, reduction="sum").item())
            begin = place + 1
    return sum(losses), int((sequence[1:] >= 0).sum())


def test_losses_are_those_of_the_exported_model_on_the_predicted_tokens_of_each_document(
    calm: tuple[Path, Path],
) -> None:
    _, store = calm
    (run,) = (run for run in stages_of(store) if run.spec()["stage"] == "finetune")
    model = AutoModelForCausalLM.from_pretrained(run.folder / "model", dtype=torch.float32).eval()
    template = json.loads((run.folder / "model" / "tokenizer_config.json").read_text())["chat_template"]
    assert template == CHATML_TEMPLATE
    for role, corpus in run.spec()["evaluation"].items():
        assert packed_corpus(store, corpus).masked == (role != "pretraining")
        found = run.losses()["splits"][role]
        parts = [loss_of_documents(model, one, model.config.eos_token_id) for one in heldout_sequences(store, corpus)]
        assert found["tokens"] == packed_corpus(store, corpus).predicted("heldout") == sum(count for _, count in parts)
        assert found["loss"] == pytest.approx(sum(loss for loss, _ in parts) / found["tokens"], rel=1e-4)


def test_a_killed_masked_run_resumes_to_the_same_bits(calm: tuple[Path, Path], tmp_path: Path) -> None:
    study, undisturbed = calm
    store = tmp_path / "runs"
    train_killed(study, store)
    assert weights(store) == weights(undisturbed)
    assert losses(store) == losses(undisturbed)


@pytest.mark.slow
def test_two_processes_train_the_same_masked_stages_as_one(calm: tuple[Path, Path], tmp_path: Path) -> None:
    study, one = calm
    train_here(study, tmp_path / "runs", "execution.devices=2", "execution.micro_batch=3")
    ours, theirs = losses(tmp_path / "runs"), losses(one)
    assert ours.keys() == theirs.keys()
    for key, found in theirs.items():
        assert ours[key]["token_digest"] == found["token_digest"]
        for split, values in found["splits"].items():
            assert ours[key]["splits"][split]["tokens"] == values["tokens"]
            assert ours[key]["splits"][split]["loss"] == pytest.approx(values["loss"], rel=1e-3)


@pytest.mark.slow
def test_a_chain_of_every_objective_mixture_and_carried_optimizer_is_drilled_to_the_same_bits(tmp_path: Path) -> None:
    rare = [
        {"passes": 2, "of": 640, "window": [0, 0.7]},
        {"passes": 2, "of": 640, "window": [0.7, 1], "replaces": True},
    ]
    further: dict[str, Any] = {"batch": 8, "lr": 3e-3, "dropout": 0.1}
    study = objective_study(
        tmp_path / "study",
        **{
            "stages": ["pretrain", "decay", "posttrain", "finetune", "finetune2"],
            "corpora.talks": {"files": "chat.jsonl", "messages": "messages", "predict": "all", "heldout": 0.1},
            "pretrain.exposure": 0,
            "pretrain.min_lr": 3e-3,
            "pretrain.mix": {"music": rare},
            "decay": further
            | {"corpus": "general", "tokens": 640, "skip": 8960, "start": {"optimizer": "carry"}}
            | {"mix": {"chemistry": {"share": 0.2, "of": 640}}, "schedule": {"wsd": 0.5}},
            "posttrain.replay": 0.1,
            "posttrain.early_stopping": {"every": 4, "patience": 2, "split": "tune"},
            "finetune.dropout": 0.1,
            "finetune2": further
            | {"corpus": "talks", "tokens": 1280, "passes": 2, "method": "lora", "lora": {"rank": 2}},
        },
    )
    sharded = ("execution.devices=2", "execution.strategy=fsdp")
    document = retain_json("drill", study, *sharded, "--kills", "5", "--store", tmp_path / "runs")
    assert (document["kills"], document["differences"]) == (5, [])
    assert set(document["by_stage"]) == {"pretrain", "decay", "posttrain", "finetune", "finetune2"}


def test_what_is_predicted_is_shown_in_brackets_and_in_parts(calm: tuple[Path, Path]) -> None:
    study, store = calm
    shown = retain_here("data", study, "--show", "chemistry", "--store", store).stdout
    assert "chemistry, sequence 0 of 32 tokens" in shown
    assert "⟦<|endoftext|>⟧" in shown
    document = retain_json("data", study, "--show", "music", "--store", store)
    text = "".join(part["text"] for part in document["sequences"][0]["parts"])
    assert text.startswith("<|im_start|>")
    predicted = [part["text"] for one in document["sequences"] for part in one["parts"] if part["predicted"]]
    assert predicted
    assert not any("<|im_start|>" in part for part in predicted)
    refused = retain_here("data", study, "--show", "poetry", "--store", store, code=2).stderr
    assert "--show poetry: unknown corpus; the corpora are general, music, chemistry" in refused


def test_no_corpus_trains_on_a_document_of_a_held_out_split(calm: tuple[Path, Path], tmp_path: Path) -> None:
    _, store = calm
    found = packed_corpus(store, corpora_of(store)["finetuning"])
    assert found.manifest["heldout"]["documents"] == 40
    assert found.manifest["train"]["documents"] < 290
    # The same tasks in another corpus of the study.
    study = objective_study(
        tmp_path / "study",
        **{"corpora.general": {"files": "tasks.jsonl", "template": "Q: {question}\nA: {answer}", "heldout": 0.1}},
    )
    document = retain_json("data", study, "--store", tmp_path / "runs")
    general = packed_corpus(tmp_path / "runs", document["corpora"][0]["fingerprint"])
    documents = general.manifest["train"]["documents"] + general.manifest["heldout"]["documents"]
    held = set((tmp_path / "study" / "held.jsonl").read_text().splitlines())
    assert len(held) == 40
    assert documents == 290


def test_a_conversation_field_of_text_names_the_cure(tmp_path: Path) -> None:
    study = objective_study(tmp_path, **{"corpora.music": {"files": "chat.jsonl", "text": "messages"}})
    refused = retain_here("run", study, "--store", tmp_path / "runs", code=2).stderr
    assert (
        "is a list of messages, expected text; write `messages: messages` in the corpus instead of `text:`" in refused
    )


def test_a_trained_tokeniser_without_a_chat_template_is_refused_with_the_cure(tmp_path: Path) -> None:
    study = objective_study(tmp_path, tokenizer={"train": 330})
    refused = retain_here("plan", study, "--store", tmp_path / "runs", code=2).stderr
    assert (
        "corpora.music.messages: a trained tokeniser has no chat template; set tokenizer.chat_template: chatml"
        in refused
    )


def test_predicting_all_tokens_of_a_conversation_needs_no_mask_and_is_another_stage(tmp_path: Path) -> None:
    study = objective_study(tmp_path / "study")
    store = tmp_path / "runs"
    masked = retain_json("data", study, "--store", store)
    everything = retain_json("data", study, "corpora.music.predict=all", "--store", store)
    prints = [{one["name"]: one["fingerprint"] for one in document["corpora"]} for document in (masked, everything)]
    assert prints[0]["music"] != prints[1]["music"]
    assert prints[0]["general"] == prints[1]["general"]
    first, second = (packed_corpus(store, one["music"]) for one in prints)
    assert (first.masked, second.masked) == (True, False)
    assert (first.sequences("train") == second.sequences("train")).all()


def test_attention_within_documents_is_refused_where_the_chat_template_writes_the_end_of_text(tmp_path: Path) -> None:
    study = objective_study(tmp_path / "study")
    store = tmp_path / "runs"
    retain_here("data", study, "--store", store)
    (folder,) = (store / "tokenizers").iterdir()
    local = shutil.copytree(folder, tmp_path / "study" / "tokenizer")
    config = json.loads((local / "tokenizer_config.json").read_text())
    (local / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|im_end|>"}))
    refused = retain_here(
        "data", study, "tokenizer={hf: tokenizer, chat_template: chatml}", "--store", store, code=2
    ).stderr
    assert "documents.attention: within would cut the conversations of corpora.music" in refused
