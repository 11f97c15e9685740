"""The published corpora, read by the code that reads the real ones: `datasets`, streaming, from files in their formats."""

import itertools
from pathlib import Path

import pytest

from retain.datamodules.corpora.documents import read_documents, source_of
from retain.datamodules.corpora.prepare import packed_corpus, prepare
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.published_corpora import PUBLISHED
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.study import Corpus
from tests.datamodules.corpora.published import A_FILE, document, publish, records
from tests.studies import tiny_fields, write_corpus


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_local_copy_of_a_published_corpus_is_read_by_naming_its_folder(name: str, tmp_path: Path) -> None:
    folder = publish(name, tmp_path)
    found = list(read_documents(Corpus(published=name, files=str(folder)), tmp_path))
    wanted = [[document(name, record) for record in records(name, file)] for file in range(2)]
    assert sorted(found) == sorted(itertools.chain(*wanted))
    in_turn = name != "c4"  # its files are shuffled already, the files of the others hold different things
    assert found == list(itertools.chain(*(zip(*wanted, strict=True) if in_turn else wanted)))


def test_a_source_read_in_turn_gives_a_budget_something_of_every_file(tmp_path: Path) -> None:
    folder = publish("flan", tmp_path, files=5)
    first = itertools.islice(read_documents(Corpus(published="flan", files=str(folder)), tmp_path), 10)
    assert {int(text.split()[2]) // 1000 for text in first} == set(range(5))


def test_a_published_corpus_is_streamed_to_its_budget_of_tokens_and_packed(tmp_path: Path) -> None:
    publish("musicpile", tmp_path, files=4)
    write_corpus(tmp_path, "general")
    write_corpus(tmp_path, "chemistry")
    fields = tiny_fields(grid={})
    local = {"files": "datasets/m-a-p/MusicPile", "tokens": 640, "heldout": 0.1}
    fields["corpora"]["music"] = {"published": "musicpile"} | local
    file = check_study(
        fields | {"posttrain": fields["posttrain"] | {"tokens": 640, "max_tokens": 1280}}, tmp_path / "a.yaml"
    )
    facts = prepare(file, tmp_path / "store", lambda *_: None)
    packed = packed_corpus(tmp_path / "store", facts.corpora["music", 32].fingerprint)
    assert packed.count("train") == 640 // 32
    assert packed.manifest["train"]["documents"] < 4 * A_FILE * 0.9


def test_a_study_may_replace_any_field_of_a_published_corpus() -> None:
    assert Corpus(published="c4").revision == PUBLISHED["c4"]["revision"]
    changed = Corpus.model_validate({"published": "flan", "revision": "v2", "text": "inputs", "tokens": "1M"})
    assert (changed.revision, changed.text, changed.template, changed.tokens) == ("v2", "inputs", None, 10**6)
    assert changed.hf == PUBLISHED["flan"]["hf"]
    with pytest.raises(
        ValueError, match="unknown corpus 'c5'; the published corpora are c4, musicpile, chempile, flan"
    ):
        Corpus(published="c5")


def test_a_template_and_the_turns_are_part_of_what_prepared_data_is_found_again_by(tmp_path: Path) -> None:
    flan = Corpus(published="flan")
    other = flan.model_copy(update={"template": "{inputs} {targets}"})
    assert source_of(flan, tmp_path) != source_of(other, tmp_path)
    assert source_of(flan, tmp_path) != source_of(flan.model_copy(update={"in_turn": 2}), tmp_path)
    assert not {"template", "in_turn"} & set(source_of(Corpus(hf="a/b"), tmp_path))


def test_files_of_two_formats_beside_each_other_are_refused(tmp_path: Path) -> None:
    publish("musicpile", tmp_path)
    (tmp_path / "datasets" / "a.csv").write_text("text\na\n")
    corpus = Corpus(published="musicpile", files="datasets")
    with pytest.raises(StudyError, match="files: csv and parquet found beside each other; name files of one format"):
        list(read_documents(corpus, tmp_path))
