"""The published corpora, read as the real ones are: by `datasets`, streaming, from files in their formats."""

import itertools
from pathlib import Path

import pytest

from retain.datamodules.corpora.documents import read_documents
from retain.datamodules.corpora.prepare import prepare
from retain.datamodules.corpora.prepared import packed_corpus
from retain.datamodules.corpora.sources import source_identity
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.schema.corpora import Corpus
from retain.sweeps.schema.published_corpora import PUBLISHED
from retain.sweeps.schema.read import check_study
from tests.datamodules.corpora.published import RECORDS_PER_FILE, document, publish, records
from tests.studies import tiny_fields, write_corpus


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_local_copy_of_a_published_corpus_is_read_from_its_folder(name: str, tmp_path: Path) -> None:
    folder = publish(name, tmp_path)
    found = list(read_documents(Corpus(published=name, files=str(folder)), tmp_path))
    expected = [[document(name, record) for record in records(name, file)] for file in range(2)]
    assert sorted(found) == sorted(itertools.chain(*expected))
    in_turn = name != "c4"  # C4's files are shuffled already; the files of the others differ in content
    assert found == list(itertools.chain(*(zip(*expected, strict=True) if in_turn else expected)))


def test_in_turn_reads_from_every_file_within_a_few_documents(tmp_path: Path) -> None:
    folder = publish("flan", tmp_path, files=5)
    first = itertools.islice(read_documents(Corpus(published="flan", files=str(folder)), tmp_path), 10)
    assert {int(text.split()[2]) // 1000 for text in first} == set(range(5))


def test_a_published_corpus_is_streamed_up_to_its_token_budget(tmp_path: Path) -> None:
    publish("musicpile", tmp_path, files=4)
    write_corpus(tmp_path, "general")
    write_corpus(tmp_path, "chemistry")
    fields = tiny_fields(grid={})
    local = {"files": "datasets/m-a-p/MusicPile", "tokens": 640, "heldout": 0.1}
    fields["corpora"]["music"] = {"published": "musicpile"} | local
    file = check_study(
        fields | {"posttrain": fields["posttrain"] | {"tokens": 640, "max_tokens": 1280}}, tmp_path / "a.yaml"
    )
    facts = prepare(file, tmp_path / "store")
    packed = packed_corpus(tmp_path / "store", facts.corpora["music", 32].fingerprint)
    assert packed.count("train") == 640 // 32
    assert packed.manifest["train"]["documents"] < 4 * RECORDS_PER_FILE * 0.9


def test_a_study_may_override_any_field_of_a_published_corpus() -> None:
    assert Corpus(published="c4").revision == PUBLISHED["c4"]["revision"]
    changed = Corpus.model_validate({"published": "flan", "revision": "v2", "text": "inputs", "tokens": "1M"})
    assert (changed.revision, changed.text, changed.template, changed.tokens) == ("v2", "inputs", None, 10**6)
    assert changed.hf == PUBLISHED["flan"]["hf"]
    with pytest.raises(
        ValueError, match="unknown corpus 'c5'; the published corpora are c4, musicpile, chempile, flan"
    ):
        Corpus(published="c5")


def test_the_source_identity_contains_template_and_in_turn_only_if_they_are_set(tmp_path: Path) -> None:
    flan = Corpus(published="flan")
    other = flan.model_copy(update={"template": "{inputs} {targets}"})
    assert source_identity(flan, tmp_path) != source_identity(other, tmp_path)
    assert source_identity(flan, tmp_path) != source_identity(flan.model_copy(update={"in_turn": 2}), tmp_path)
    assert not {"template", "in_turn"} & set(source_identity(Corpus(hf="a/b"), tmp_path))


def test_a_local_data_set_folder_starts_at_the_study_file_and_is_known_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "one"}\n')
    monkeypatch.chdir("/")
    corpus = Corpus(hf="data")
    before = source_identity(corpus, tmp_path)
    assert list(read_documents(corpus, tmp_path)) == ["one"]
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "another"}\n')
    assert source_identity(corpus, tmp_path) != before


@pytest.mark.parametrize(
    ("content", "words"), [(b"text\nMot\xf6r\n", "0xf6"), (b"text,n\na,1\nb,2,3\n", "Expected 2"), (b"", "No columns")]
)
def test_damaged_local_files_of_datasets_are_not_blamed_on_the_network(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(MissingResourceError, match="check that the files are intact and in this format") as refused:
        list(read_documents(Corpus(hf="csv", files="a.csv"), tmp_path))
    assert words in str(refused.value)


def test_records_that_datasets_cannot_cast_are_read_without_it_as_the_error_says(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "more": null, "tags": []}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "two", "more": {"by": 1}, "tags": [{"id": 1}], "extra": 5}\n')
    with pytest.raises(MissingResourceError, match="jsonl, json and parquet files need no `hf:`"):
        list(read_documents(Corpus(hf="json", files="*.jsonl"), tmp_path))
    assert list(read_documents(Corpus(files="*.jsonl"), tmp_path)) == ["one", "two"]


def test_local_files_of_several_formats_are_refused(tmp_path: Path) -> None:
    publish("musicpile", tmp_path)
    (tmp_path / "datasets" / "a.csv").write_text("text\na\n")
    corpus = Corpus(published="musicpile", files="datasets")
    with pytest.raises(StudyError, match="files: found csv and parquet, expected one format; name files of one format"):
        list(read_documents(corpus, tmp_path))
