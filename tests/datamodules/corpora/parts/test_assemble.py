"""A corpus that is put together from parts has the bits of one that is read by a single process."""

import json
import mmap
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import retain.datamodules.corpora.parts.assemble as assembling
from retain.datamodules.corpora.documents import document_hash, read_documents
from retain.datamodules.corpora.packing import Division, pack
from retain.datamodules.corpora.parts.assemble import assemble, distinct_tokens
from retain.datamodules.corpora.parts.cut import Cut, Part, cut_source
from retain.datamodules.corpora.parts.read import part_documents
from retain.datamodules.corpora.parts.stored import StoredPart, open_part, write_part
from retain.datamodules.corpora.prepared import PackedCorpus
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.tokenizer import Tokenizer, train_tokenizer
from retain.sweeps.base.errors import DamageError, MissingResourceError, StudyError
from retain.sweeps.schema.corpora import Corpus
from tests.studies import documents_of

TEXTS = [
    "",
    "  ",
    "one",
    "one two three",
    "ünïcödé ✓",
    "half \ud83d of a pair",
    None,
    "line\nbreak\r\nand more",
    "x" * 300,
    *documents_of("music", 20),
]
LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(documents_of("general"), 320)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def quiet(documents: int, tokens: int) -> None:
    pass


def whole_texts(documents: list[str | None]) -> list[str | None]:
    return [text and text.replace("\ud83d", "") for text in documents]


def write_files(folder: Path, form: str, files: list[list[str | None]], width: int) -> None:
    """Write documents as jsonl, text, parquet or a mixture of record files. width: records in a row group.

    Null documents are written as records, and lone surrogates as jsonl, which alone can hold them.
    """
    for number, documents in enumerate(files):
        kind = ("jsonl", "parquet")[number % 2] if form == "records" else form
        path = folder / f"{number:03}.{'txt' if kind == 'text' else kind}"
        if kind == "jsonl":
            path.write_bytes(
                b"".join(json.dumps({"text": text}).encode() + b"\r\n\n"[number % 2 :] for text in documents)
            )
        elif kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.table({"text": whole_texts(documents)}), path, row_group_size=width)
        else:
            path.write_text("\n--\n".join(text or "" for text in whole_texts(documents)))


def whole(
    corpus: Corpus,
    folder: Path,
    tokenizer: Tokenizer,
    division: Division,
    masked: bool = False,
    tally: Tally | None = None,
) -> PackedCorpus:
    place, tally = Path(tempfile.mkdtemp(dir=folder)) / "whole", tally or Tally()
    documents = read_documents(corpus, folder, tally=tally)
    return pack(documents, tokenizer, LENGTH, division, corpus.tokens, place, quiet, masked, tally)


def in_parts(
    corpus: Corpus,
    folder: Path,
    tokenizer: Tokenizer,
    division: Division,
    size: int,
    order: int,
    masked: bool = False,
    tally: Tally | None = None,
) -> tuple[PackedCorpus, Cut]:
    """The corpus from parts that are made in a random order."""
    counts = tally or Tally()
    place = Path(tempfile.mkdtemp(dir=folder))
    cut = cut_source(corpus, folder, size)
    numbers = list(range(len(cut.parts)))
    random.Random(order).shuffle(numbers)
    for number in numbers:
        own = Tally()
        documents = part_documents(corpus, folder, cut.parts[number], cut.shards, tally=own)
        write_part(documents, tokenizer, masked, place / str(number), quiet, own)
    names = {part: str(number) for number, part in enumerate(cut.parts)}

    def opened(part: Part) -> StoredPart:
        found = open_part(place / names[part])
        counts.counts.update(found.manifest["counts"])
        return found

    streams = [map(opened, stream) for stream in cut.streams]
    budget, packed = corpus.tokens, place / "packed"
    return assemble(streams, tokenizer, LENGTH, division, budget, packed, quiet, masked, tally=counts), cut


def contents(packed: PackedCorpus) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in packed.folder.iterdir()}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    form=st.sampled_from(["jsonl", "text", "parquet", "records"]),
    files=st.lists(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=30), min_size=1, max_size=6),
    size=st.integers(1, 4000),
    budget=st.none() | st.integers(1, 3000),
    heldout=st.sampled_from([0.02, 0.3]),
    more=st.sampled_from([0, 0.2]),
    order=st.integers(0, 9),
)
def test_any_cut_in_any_order_gives_the_bits_of_a_single_process(
    tokenizer: Tokenizer,
    form: str,
    files: list[list[str | None]],
    size: int,
    budget: int | None,
    heldout: float,
    more: float,
    order: int,
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "data").mkdir()
        write_files(folder / "data", form, files, 1 + order)
        corpus = Corpus(files="data", tokens=budget, **({"separator": "\n--\n"} if form == "text" else {}))
        own, others = ["kept apart", "kept apart", "one"], [document_hash("one two three")]
        division = Division(heldout, heldout + more, own, others)
        one, many = Tally(), Tally()
        try:
            calm = whole(corpus, folder, tokenizer, division, tally=one)
        except StudyError as error:
            if "separator" not in str(error):
                with pytest.raises(StudyError, match="holds no text"):
                    in_parts(corpus, folder, tokenizer, division, size, order)
            return
        packed, _ = in_parts(corpus, folder, tokenizer, division, size, order, tally=many)
        assert contents(packed) == contents(calm)
        if budget is None:  # with a budget, one process reads to its end, and parts are read whole
            assert many.reading() == one.reading()


def test_streams_whose_memory_is_given_back_while_they_are_read_give_the_bits_of_a_single_process(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembling, "GIVEN_BACK", mmap.PAGESIZE)
    monkeypatch.setattr(assembling, "COPIED_TOKENS", 1000)
    division = Division(0.1, 0.2)
    texts = [f"{number} {text}" for number, text in enumerate(documents_of("music", 3000))]
    shares = [texts[::2], texts[1::2]]
    parts = [
        write_part(share, tokenizer, False, folder / str(number), quiet, Tally()) for number, share in enumerate(shares)
    ]
    assert min(len(part.tokens) for part in parts) > 4 * mmap.PAGESIZE
    packed = assemble([iter([part]) for part in parts], tokenizer, LENGTH, division, None, folder / "packed", quiet)
    calm = pack(texts, tokenizer, LENGTH, division, None, folder / "calm", quiet)
    assert contents(packed) == contents(calm)


def test_large_files_are_cut_into_ranges_and_row_groups_and_small_files_are_put_together(folder: Path) -> None:
    (folder / "data").mkdir()
    write_files(folder / "data", "records", [documents_of("music", 200), documents_of("general", 200)], 10)
    sizes = [path.stat().st_size for path in sorted((folder / "data").iterdir())]
    cut = cut_source(Corpus(files="data"), folder, 4000)
    assert len(cut.parts) > 6
    assert {piece.unit for part in cut.parts for piece in part.pieces} == {"lines", "rows"}
    assert cut_source(Corpus(files="data"), folder, 4000) == cut
    assert max(part.bytes for part in cut.parts) < 9000
    assert len(cut_source(Corpus(files="data"), folder, sum(sizes)).parts) == 1
    for number in range(20):
        (folder / "data" / f"small{number}.jsonl").write_text(json.dumps({"text": "small"}) + "\n")
    assert len(cut_source(Corpus(files="data"), folder, 4000).parts) == len(cut.parts) + 1


@pytest.mark.parametrize("start", ["[", "compressed", "\ufeff", "wide"])
def test_files_that_are_no_lines_of_utf8_are_read_whole_and_a_byte_order_mark_is_no_reason(
    folder: Path, tokenizer: Tokenizer, start: str
) -> None:
    import gzip

    texts = documents_of("music", 100)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    content: bytes = lines.encode()
    if start == "[":
        content = json.dumps([{"text": text} for text in texts]).encode()
    elif start == "compressed":
        content = gzip.compress(content)
    elif start == "wide":
        content = lines.encode("utf-16")
    else:
        content = b"\xef\xbb\xbf" + content
    (folder / "a.jsonl").write_bytes(content)
    (folder / "b.jsonl").write_text(lines)
    corpus, division = Corpus(files=["a.jsonl", "b.jsonl"]), Division(0.1, 0.1)
    packed, cut = in_parts(corpus, folder, tokenizer, division, 1000, 0)
    assert contents(packed) == contents(whole(corpus, folder, tokenizer, division))
    assert (cut.parts[0].pieces[0].unit == "file") == (start != "\ufeff")


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(size=st.integers(100, 3000), budget=st.none() | st.integers(1, 3000), masked=st.booleans())
def test_predicted_tokens_are_those_of_a_single_process(
    tokenizer: Tokenizer, size: int, budget: int | None, masked: bool
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        records = [{"q": text, "a": text[::-1]} for text in TEXTS[2:] * 3 if text]
        (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        corpus = Corpus(files="a.jsonl", prompt="{q}", response=" {a}", tokens=budget)
        division = Division(0.2, 0.2)
        packed, _ = in_parts(corpus, folder, tokenizer, division, size, 0, masked)
        assert contents(packed) == contents(whole(corpus, folder, tokenizer, division, masked))


@pytest.mark.parametrize("in_turn", [1, 2, 3, 7])
@pytest.mark.parametrize("budget", [None, 700])
def test_shards_of_a_data_set_are_parts_also_if_they_are_read_in_turn(
    folder: Path, tokenizer: Tokenizer, in_turn: int, budget: int | None
) -> None:
    texts = documents_of("music", 60)
    for number in range(7):
        lines = "".join(f"{text}\n" for text in texts[number * 5 : number * 5 + 3 + 2 * number])
        (folder / f"{number}.csv").write_text(f"text\n{lines}")
    corpus = Corpus(hf="csv", files="*.csv", in_turn=in_turn, tokens=budget)
    division = Division(0.1, 0.1)
    packed, cut = in_parts(corpus, folder, tokenizer, division, 10, 0)
    assert len(cut.parts) == 7
    assert len(cut.streams) == in_turn
    assert contents(packed) == contents(whole(corpus, folder, tokenizer, division))


def test_a_bad_line_is_named_by_its_file_and_its_number_in_the_whole_file(folder: Path, tokenizer: Tokenizer) -> None:
    lines = [json.dumps({"text": text}) for text in documents_of("music", 100)]
    lines[77] = '{"text": '
    (folder / "a.jsonl").write_text("\n".join(lines))
    corpus = Corpus(files="a.jsonl")
    cut = cut_source(corpus, folder, 1000)
    part = next(part for part in cut.parts if part.pieces[0].begin <= len("\n".join(lines[:77])) < part.pieces[0].end)
    with pytest.raises(StudyError, match=r"a\.jsonl, line 78: invalid JSON"):
        write_part(part_documents(corpus, folder, part, 0), tokenizer, False, folder / "part", quiet, Tally())
    assert not (folder / "part" / "part.json").exists()


@pytest.mark.parametrize("change", ["longer", "later", "other content at the same size and time"])
def test_a_file_that_changes_between_parts_is_noticed(folder: Path, change: str) -> None:
    import os

    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents_of("music", 100)))
    corpus = Corpus(files="a.jsonl")
    cut, before = cut_source(corpus, folder, 1000), file.stat()
    if change == "longer":
        file.write_text(file.read_text() + "\n")
    elif change == "later":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        file.write_text(file.read_text().replace("0 ", "9 ", 1))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(MissingResourceError, match=r"a\.jsonl: the file changed while it was prepared"):
        list(part_documents(corpus, folder, cut.parts[3], 0))


def made(folder: Path, tokenizer: Tokenizer, texts: list[str]) -> StoredPart:
    return write_part(iter(texts), tokenizer, False, folder, quiet, Tally())


def test_damage_of_a_part_is_found_and_named(folder: Path, tokenizer: Tokenizer) -> None:
    part = made(folder / "part", tokenizer, documents_of("music", 50))
    part.check()
    content = bytearray((folder / "part" / "tokens.bin").read_bytes())
    content[7] ^= 1
    (folder / "part" / "tokens.bin").write_bytes(content)
    with pytest.raises(DamageError, match=r"tokens\.bin is damaged; delete the folder"):
        open_part(folder / "part").check()


def test_a_budget_asks_for_no_part_beyond_it(folder: Path, tokenizer: Tokenizer) -> None:
    asked: list[int] = []
    texts = documents_of("music", 100)

    def parts() -> Iterator[StoredPart]:
        for number in range(10):
            asked.append(number)
            yield made(folder / str(number), tokenizer, texts[number * 10 : number * 10 + 10])

    division: Any = Division(0, 0)
    twice = [made(folder / "first", tokenizer, texts[:10])] * 2
    (first, trained), again = distinct_tokens(twice, division)
    assert first == trained > 0
    assert again == (0, 0)
    shutil.rmtree(folder / "first")
    packed = assemble([parts()], tokenizer, LENGTH, division, 2 * first, folder / "packed", quiet)
    assert asked in ([0, 1], [0, 1, 2])
    assert packed.count("train") * LENGTH > 2 * first - LENGTH
