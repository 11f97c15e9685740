"""Corpora of pairs: what is packed, what is left out, and how pairs are divided."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retain.datamodules.corpora.packing import Division
from retain.datamodules.corpora.preferences.packing import pack_pairs
from retain.datamodules.corpora.prepare import prepare
from retain.datamodules.corpora.prepared import (
    PackedCorpus,
    open_packed,
    packed_corpus,
    packed_problem,
    stored_tokenizer,
)
from retain.datamodules.corpora.responses.marked import Pair, answered
from retain.datamodules.order.prefetch import MappedSequences
from retain.datamodules.order.stage_data import heldout_pairs, heldout_sequences, read_pairs
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.data_facts import Facts
from tests.datamodules.corpora.preferences.made_pairs import DPO, PAIRS, pair_study, write_pairs
from tests.studies import tiny_study

LENGTH = 48


def prepared(study: Path, *overrides: str) -> tuple[Facts, PackedCorpus]:
    facts = prepare(read_study(str(study), overrides), study.parent / "runs")
    return facts, packed_corpus(study.parent / "runs", facts.corpora["pairs", LENGTH].fingerprint)


def texts(packed: PackedCorpus, facts: Facts, split: str) -> list[tuple[str, str, str]]:
    """Prompt, chosen and rejected of each pair, from the tokens; checks the mask and the padding."""
    tokenizer = stored_tokenizer(packed.folder.parents[1], facts.tokenizer)
    pairs = read_pairs(packed, split, np.arange(packed.count(split))).tolist()
    found = []
    for chosen, rejected in zip(pairs[0::2], pairs[1::2], strict=True):
        parts = []
        for row in (chosen, rejected):
            while row[-1] == ~tokenizer.end_id:
                row.pop()
            begin = next(place for place, token in enumerate(row) if token >= 0)
            assert all(token >= 0 for token in row[begin:])  # the response and its end of text are predicted
            assert row[-1] == tokenizer.end_id
            prompt, response = tokenizer.decode([[~token for token in row[:begin]], row[begin:-1]])
            parts.append((prompt, response))
        assert parts[0][0] == parts[1][0]
        found.append((parts[0][0], parts[0][1], parts[1][1]))
    return found


def _pair(prompt: str, chosen: str, rejected: str) -> Pair:
    return Pair(prompt, answered(prompt, chosen), answered(prompt, rejected))


def test_a_pair_is_two_sequences_in_which_only_the_responses_are_predicted(tmp_path: Path) -> None:
    study = pair_study(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    facts, packed = prepared(study)
    wanted = {(f"Q {one['question']}:", f" {one['good']}", f" {one['bad']}") for one in records}
    train, heldout = texts(packed, facts, "train"), texts(packed, facts, "heldout")
    assert set(train) | set(heldout) <= wanted
    assert len(train) > 100
    assert len(heldout) > 5
    assert not {pair[0] for pair in train} & {pair[0] for pair in heldout}
    own = facts.corpora["pairs", LENGTH]
    assert (own.train, own.heldout) == (len(train), len(heldout))


def test_whoever_reads_no_pairs_reads_the_chosen_responses(tmp_path: Path) -> None:
    _, packed = prepared(pair_study(tmp_path))
    store, fingerprint = tmp_path / "runs", packed.fingerprint
    pairs, numbers = heldout_pairs(store, fingerprint)
    assert heldout_sequences(store, fingerprint).equal(pairs[0::2])
    assert numbers.tolist() == list(range(packed.count("heldout")))
    half, chosen = heldout_pairs(store, fingerprint, "tune")
    assert half.view(-1, 2, LENGTH).equal(pairs.view(-1, 2, LENGTH)[chosen])
    ordinary = MappedSequences(packed.sequences("train"), packed.mask("train")).read(np.arange(3))
    assert (read_pairs(packed, "train", np.arange(3))[0::2].numpy() == ordinary).all()


def test_pairs_of_one_prompt_are_in_one_split(tmp_path: Path) -> None:
    draw = [{"question": str(number // 5), "good": f"a {number}", "bad": f"b {number}"} for number in range(300)]
    write_pairs(tmp_path, 0, *draw)
    facts, packed = prepared(tiny_study(tmp_path, **DPO))
    train, heldout = ({pair[0] for pair in texts(packed, facts, split)} for split in ("train", "heldout"))
    assert train
    assert heldout
    assert not train & heldout


def test_what_cannot_be_a_pair_is_skipped_and_counted(tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"question": "same", "good": "C D E", "bad": "C D E"},
        {"question": "blank", "good": "  ", "bad": "C"},
        {"question": None, "good": "a", "bad": "b"},
        *({"question": f"long {number}", "good": "C D E F " * 30, "bad": "b"} for number in range(10)),
        {"question": "again", "good": "a", "bad": "b"},
        {"question": "again", "good": "a", "bad": "b"},
    ]
    write_pairs(tmp_path, 100, *odd)
    facts, packed = prepared(tiny_study(tmp_path, **DPO))
    reading = facts.corpora["pairs", LENGTH].reading
    assert reading is not None
    assert (reading.equal, reading.empty, reading.null, reading.duplicates) == (1, 1, 1, 1)
    assert reading.long > 5
    assert reading.documents == packed.count("train") + packed.count("heldout")
    assert reading.documents + reading.withheld + reading.long == 111


def test_a_held_out_split_that_pairs_bring_along_keeps_its_prompts_from_training(tmp_path: Path) -> None:
    asked = [{"question": f"own {number}", "good": "C", "bad": "D"} for number in range(20)]
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    again = [one | {"good": "E"} for one in asked[:7]]
    write_pairs(tmp_path, 100, *again)
    study = tiny_study(tmp_path, **DPO | {"corpora.pairs": PAIRS | {"heldout": {"files": "valid.jsonl"}}})
    facts, packed = prepared(study)
    assert [pair[0] for pair in texts(packed, facts, "heldout")] == [f"Q {one['question']}:" for one in asked]
    assert not {pair[0] for pair in texts(packed, facts, "train")} & {f"Q {one['question']}:" for one in asked}
    assert getattr(facts.corpora["pairs", LENGTH].reading, "asked", None) == 7


def test_a_budget_counts_both_responses(tmp_path: Path) -> None:
    study = pair_study(tmp_path, **{"corpora.pairs": PAIRS | {"tokens": 20 * 2 * LENGTH}, "finetune.tokens": 1920})
    _, packed = prepared(study)
    assert packed.count("train") == 20


def test_the_fingerprint_is_of_both_responses_and_damage_to_either_is_found(tmp_path: Path) -> None:
    facts, _ = prepared(pair_study(tmp_path))
    tokenizer = stored_tokenizer(tmp_path / "runs", facts.tokenizer)

    def packed_with(bad: str) -> PackedCorpus:
        pairs = [_pair(f"Q {number}", "C D E", bad) for number in range(40)]
        folder = tmp_path / bad
        return pack_pairs(pairs, tokenizer, LENGTH, Division(0.1, 0.1), None, folder, lambda *_: None)

    packed, other = packed_with("oxide"), packed_with("acid")
    assert packed.manifest["train"]["sha256"] == other.manifest["train"]["sha256"]
    assert packed.fingerprint != other.fingerprint
    other.folder.rename(tmp_path / other.fingerprint)
    other = open_packed(tmp_path / other.fingerprint)
    assert packed_problem(other.folder) is None
    damaged = other.folder / "train.rejected.bin"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert "train.rejected.bin is damaged" in str(packed_problem(other.folder))


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (
            {"question": "q", "good": "a"},
            "pairs.jsonl, line 41: field 'bad' not found (the fields are question, good)",
        ),
        (
            {"question": "q", "good": [{"role": "user"}], "bad": "b"},
            "pairs.jsonl, line 41: field 'good' is a list of messages",
        ),
    ],
)
def test_a_record_without_a_field_is_named_with_file_and_line(
    record: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    write_pairs(tmp_path, 40, record)
    with pytest.raises(StudyError) as error:
        prepared(tiny_study(tmp_path, **DPO))
    assert "tiny.yaml: corpora.pairs: " in str(error.value)
    assert problem in str(error.value)


def test_pairs_that_are_all_too_long_are_refused_in_one_sentence(tmp_path: Path) -> None:
    long = [{"question": str(number), "good": "C D E F " * 30, "bad": "b"} for number in range(30)]
    write_pairs(tmp_path, 0, *long)
    with pytest.raises(
        StudyError, match=r"corpora.pairs: every pair for training is longer than a sequence of 48 tokens"
    ):
        prepared(tiny_study(tmp_path, **DPO))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"chosen": "{a}"}, "corpora.pairs.prompt: this field is required; a pair needs prompt, chosen and rejected"),
        (
            {"prompt": "{q}", "chosen": "{a}"},
            "corpora.pairs.rejected: this field is required; a pair needs prompt, chosen and rejected",
        ),
        ({**PAIRS, "response": "{a}"}, "response: cannot be combined with chosen"),
        ({**PAIRS, "text": "body"}, "chosen: cannot be combined with text"),
        ({**PAIRS, "predict": "all"}, "predict: only the responses of pairs are predicted"),
        ({**PAIRS, "by": "source"}, "by: the losses of pairs are not given by value"),
        ({**PAIRS, "dedupe": "near"}, "dedupe: near compares documents, and pairs are compared exactly"),
    ],
)
def test_fields_of_a_corpus_that_do_not_fit_together_are_refused(
    fields: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    study = pair_study(tmp_path, **{"corpora.pairs": {"files": "pairs.jsonl", **fields}})
    with pytest.raises(StudyError) as error:
        read_study(str(study))
    assert problem.partition(": ")[2] in str(error.value)
