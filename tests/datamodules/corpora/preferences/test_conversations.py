"""Pairs of conversations: the tokens are transformers' own, and only the turns after the common beginning are predicted."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retain.datamodules.corpora.prepare import prepare
from retain.datamodules.corpora.prepared import PackedCorpus, packed_corpus, stored_tokenizer
from retain.datamodules.corpora.responses.chat import CHATML_TEMPLATE
from retain.datamodules.order.stage_data import read_pairs
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.data_facts import Facts
from tests.datamodules.corpora.preferences.made_pairs import DPO, record
from tests.studies import tiny_study

LENGTH = 128
FIELDS: dict[str, Any] = {
    "files": "pairs.jsonl",
    "chosen_messages": "chosen",
    "rejected_messages": "rejected",
    "heldout": 0.1,
}
UNTAGGED = CHATML_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
Turns = list[dict[str, str]]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversations(count: int = 60) -> list[dict[str, Turns]]:
    """Pairs of conversations. Every second prompt holds an answer, and every third pair goes on after the answers."""
    draw, found = random.Random("conversations"), []
    for number in range(count):
        parts = record(draw, number)
        prompt = [said("user", parts["question"])]
        if number % 2:
            prompt += [said("assistant", "C D"), said("user", "again")]
        more = [said("user", "and now"), said("assistant", "G A")] if number % 3 == 0 else []
        chosen, rejected = ([said("assistant", parts[name]), *more] for name in ("good", "bad"))
        found.append({"prompt": prompt, "chosen": prompt + chosen, "rejected": prompt + rejected})
    return found


def without_prompts(pairs: list[dict[str, Turns]]) -> list[dict[str, Turns]]:
    """The same pairs, with the prompt in a field of its own only."""
    return [
        {"prompt": pair["prompt"]} | {name: pair[name][len(pair["prompt"]) :] for name in ("chosen", "rejected")}
        for pair in pairs
    ]


def chat_study(folder: Path, records: list[Any], **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    changed = {"sequence_length": LENGTH, "tokenizer.chat_template": "chatml", "corpora.pairs": FIELDS | fields}
    return tiny_study(folder, **DPO | {"model.context": LENGTH} | changed)


def prepared(study: Path) -> tuple[Facts, PackedCorpus]:
    facts = prepare(read_study(str(study)), study.parent / "runs")
    return facts, packed_corpus(study.parent / "runs", facts.corpora["pairs", LENGTH].fingerprint)


@pytest.mark.parametrize("template", ["chatml", UNTAGGED], ids=["with generation tags", "without"])
def test_tokens_are_those_of_apply_chat_template_and_the_turns_after_the_prompt_are_predicted(
    template: str, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    pairs = conversations()
    study = chat_study(tmp_path, pairs)
    study.write_text(study.read_text().replace("chatml", json.dumps(template)))
    facts, packed = prepared(study)
    tokenizer = stored_tokenizer(tmp_path / "runs", facts.tokenizer)
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.core, eos_token=tokenizer.end_of_text)

    def wanted(messages: Turns, prompt: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        ids, mask = (
            theirs.apply_chat_template(
                messages, chat_template=CHATML_TEMPLATE, return_dict=True, return_assistant_tokens_mask=True
            )[name]
            for name in ("input_ids", "assistant_masks")
        )
        before = len(theirs.apply_chat_template(messages[:prompt], chat_template=CHATML_TEMPLATE)["input_ids"])
        answers = [bool(flag) and place >= before for place, flag in enumerate(mask)]
        if template != "chatml":  # then the line break after a turn is one of its tokens
            answers = [flag or (place > 0 and answers[place - 1]) for place, flag in enumerate(answers)]
        return tuple(ids), tuple(answers)

    expected = {tuple(wanted(pair[name], len(pair["prompt"])) for name in ("chosen", "rejected")) for pair in pairs}
    found = set()
    for split in ("train", "heldout"):
        rows = read_pairs(packed, split, np.arange(packed.count(split))).tolist()
        for couple in zip(rows[0::2], rows[1::2], strict=True):
            sides = []
            for row in couple:
                while row[-1] == ~tokenizer.end_id:
                    row.pop()
                if row[-1] == tokenizer.end_id:  # predicted where the token before it is
                    row.pop()
                sides.append((tuple(max(token, ~token) for token in row), tuple(token >= 0 for token in row)))
            found.add(tuple(sides))
    assert found <= expected
    assert len(found) == packed.count("train") + packed.count("heldout") > 40


def test_a_prompt_in_a_field_of_its_own_gives_the_same_sequences(tmp_path: Path) -> None:
    whole, _ = prepared(chat_study(tmp_path / "whole", conversations()))
    apart, _ = prepared(chat_study(tmp_path / "apart", without_prompts(conversations()), messages="prompt"))
    assert whole.corpora["pairs", LENGTH].fingerprint == apart.corpora["pairs", LENGTH].fingerprint


def test_pairs_that_lack_an_answer_or_a_difference_are_skipped_and_counted(tmp_path: Path) -> None:
    ask, one, other = said("user", "q"), said("assistant", "C"), said("assistant", "D")
    odd: list[Any] = [
        {"chosen": [ask, one], "rejected": [ask, one]},
        {"chosen": [ask, one], "rejected": [ask]},
        {"chosen": [ask, one], "rejected": [ask, said("assistant", " ")]},
        {"chosen": [one], "rejected": [other]},
        {"chosen": [], "rejected": [ask, other]},
        {"chosen": None, "rejected": [ask, other]},
        {"chosen": [ask, one], "rejected": [ask, other]},
        {"chosen": [ask, one], "rejected": [ask, other]},
    ]
    facts, packed = prepared(chat_study(tmp_path, [*conversations(), *odd]))
    reading = facts.corpora["pairs", LENGTH].reading
    assert reading is not None
    assert (reading.equal, reading.empty, reading.null, reading.duplicates, reading.long) == (1, 4, 1, 1, 0)
    assert reading.documents + reading.withheld == 61
    assert reading.documents == packed.count("train") + packed.count("heldout")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"rejected": [said("user", "another"), said("assistant", "D")]},
            "the conversations in 'chosen' and 'rejected' differ first in a message of role 'user'",
        ),
        ({"rejected": "D"}, "field 'rejected' is text, expected a list of messages; correct `rejected_messages:`"),
        ({"rejected": [{"role": "user"}]}, "message 1: field 'content' not found"),
    ],
)
def test_what_is_no_pair_of_conversations_is_one_sentence_with_its_place(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    first = {
        "chosen": [said("user", "q"), said("assistant", "C")],
        "rejected": [said("user", "q"), said("assistant", "D")],
    }
    with pytest.raises(StudyError) as error:
        prepared(chat_study(tmp_path, [first, first | change]))
    assert problem in str(error.value)
    assert "pairs.jsonl, line 2" in str(error.value)


def test_text_templates_that_name_messages_say_which_field_to_write_instead(tmp_path: Path) -> None:
    chat_study(tmp_path, [pair | {"ask": "why"} for pair in conversations(2)])
    texts = {"files": "pairs.jsonl", "prompt": "{ask}", "chosen": "{chosen}", "rejected": "{rejected}"}
    study = tiny_study(tmp_path, **DPO | {"corpora.pairs": texts})
    with pytest.raises(StudyError, match=r"write `chosen_messages: chosen` in the corpus instead of `chosen:`"):
        prepare(read_study(str(study)), tmp_path / "runs")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"chosen_messages": "a"}, "rejected_messages: this field is required; a pair needs chosen_messages and "),
        ({"rejected_messages": "a"}, "chosen_messages: this field is required; a pair needs chosen_messages and "),
        ({**FIELDS, "prompt": "{q}"}, "prompt: cannot be combined with chosen_messages; remove prompt, or name "),
        ({**FIELDS, "text": "body"}, "chosen_messages: cannot be combined with text"),
        ({**FIELDS, "predict": "all"}, "predict: only the responses of pairs are predicted"),
    ],
)
def test_fields_of_a_corpus_that_do_not_fit_together_are_refused(
    fields: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    chat_study(tmp_path, conversations(2))
    study = tiny_study(
        tmp_path, **DPO | {"tokenizer.chat_template": "chatml", "corpora.pairs": {"files": "pairs.jsonl", **fields}}
    )
    with pytest.raises(StudyError) as error:
        read_study(str(study))
    assert problem in str(error.value).replace("corpora.pairs: ", "").replace("corpora.pairs.", "")


def test_a_trained_tokeniser_needs_a_chat_template(tmp_path: Path) -> None:
    chat_study(tmp_path, conversations(2))
    with pytest.raises(StudyError, match=r"corpora.pairs.chosen_messages: a trained tokeniser has no chat template"):
        read_study(str(tiny_study(tmp_path, **DPO | {"corpora.pairs": FIELDS})))
