"""What is trained stays readable when its sources change or go; data that is damaged is prepared again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from retain.datamodules.corpora import prepare as preparing
from retain.datamodules.corpora.known import known_facts, remembered_facts
from retain.datamodules.corpora.prepare import prepare
from retain.datamodules.corpora.prepared import packed_corpus, packed_problem, stored_tokenizer
from retain.datamodules.order.batches import stage_batches
from retain.launchers.checks.verify import verify_store
from retain.launchers.planning.opened_study import open_study
from retain.launchers.planning.register import register
from retain.launchers.stage.attempt import attempt_code
from retain.launchers.stage.failures import DAMAGE, classify
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import StopRequest
from retain.results.store.runs import Store
from retain.sweeps.base.errors import DamageError, MissingResourceError
from retain.sweeps.base.files import write_json
from retain.sweeps.schema.read import StudyFile, read_study
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.tree import expand
from tests.conftest import Prepared
from tests.studies import tiny_study

Copy = tuple[StudyFile, Path]


@pytest.fixture
def copied(prepared: Prepared, tmp_path: Path) -> Copy:
    """The tiny study and its prepared store, to be changed."""
    folder = Path(shutil.copytree(prepared.file.folder, tmp_path / "study"))
    store = Path(shutil.copytree(prepared.store, tmp_path / "store"))
    file = read_study(str(folder / prepared.file.path.name))
    prepare(file, store)  # the files' paths are others
    return file, store


def touch(file: StudyFile) -> None:
    os.utime(file.folder / "music.jsonl", (1, 1))


def grow(file: StudyFile) -> None:
    with (file.folder / "music.jsonl").open("a") as stream:
        stream.write('{"text": "one more"}\n')


def delete(file: StudyFile) -> None:
    (file.folder / "music.jsonl").unlink()


@pytest.mark.parametrize(
    ("change", "told"), [(touch, "has changed"), (grow, "has changed"), (delete, "no file matches music.jsonl")]
)
def test_what_is_trained_stays_readable_when_a_source_changes_and_that_is_said(
    prepared: Prepared, copied: Copy, change: Callable[[StudyFile], None], told: str
) -> None:
    file, store = copied
    change(file)
    facts, remarks = remembered_facts(file, store)
    assert facts == prepared.facts
    assert len(remarks) == 1
    assert remarks[0].startswith("tiny.yaml: corpora.music: ")
    assert told in remarks[0]
    assert expand(file, facts).stages == expand(file, prepared.facts).stages


@pytest.mark.parametrize("folders", [("corpora",), ("tokenizers",), ("corpora", "tokenizers")])
def test_what_is_trained_stays_readable_without_the_packed_data(
    prepared: Prepared, copied: Copy, folders: tuple[str, ...]
) -> None:
    file, store = copied
    for folder in folders:
        shutil.rmtree(store / folder)
    facts, remarks = remembered_facts(file, store)
    assert facts == prepared.facts
    assert all(remark.startswith("tiny.yaml: ") for remark in remarks)
    assert remarks


def test_a_store_that_knows_nothing_of_the_data_says_that_keys_are_provisional(
    copied: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    file, store = copied
    shutil.rmtree(store / "prepared")
    assert open_study(str(file.path), (), store).tree.provisional
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("retain: tiny.yaml: corpora.general, corpora.music, corpora.chemistry are not prepared in ")
    assert "stage keys are provisional" in said


def test_a_deleted_source_of_which_the_store_knows_nothing_is_named(copied: Copy, tmp_path: Path) -> None:
    file, _ = copied
    delete(file)
    with pytest.raises(MissingResourceError, match=r"tiny\.yaml: corpora\.music: files: no file matches music\.jsonl"):
        remembered_facts(file, tmp_path / "elsewhere")
    own = read_study(str(file.path), ["corpora.general.heldout={files: nope.txt}"])
    with pytest.raises(MissingResourceError, match=r"corpora\.general\.heldout\.files: no file matches nope\.txt"):
        remembered_facts(own, tmp_path / "elsewhere")


def test_other_settings_of_a_corpus_are_not_what_was_prepared(copied: Copy) -> None:
    file, store = copied
    assert not remembered_facts(read_study(str(file.path), ["corpora.music.heldout=0.2"]), store)[0].prepared


def test_a_store_of_an_earlier_version_gains_the_notes_that_outlive_its_sources(
    prepared: Prepared, copied: Copy
) -> None:
    file, store = copied
    shutil.rmtree(store / "prepared" / "last")
    for path in (store / "prepared").glob("*.json"):
        note = json.loads(path.read_text())
        del note["facts"]
        write_json(path, note)
    assert prepare(file, store) == prepared.facts
    delete(file)
    assert remembered_facts(file, store)[0] == prepared.facts


@pytest.mark.parametrize("change", [touch, grow])
@pytest.mark.parametrize("reading", ["tokenizer", "general", "music"])
def test_a_source_that_changes_while_it_is_prepared_is_refused(
    prepared: Prepared, tmp_path: Path, change: Callable[[StudyFile], None], reading: str
) -> None:
    file = read_study(str(tiny_study(tmp_path / "study")))

    def report(what: str, documents: int, tokens: int) -> None:
        if what == reading:
            change(file)
            report_done.append(what)

    report_done: list[str] = []
    with pytest.raises(
        MissingResourceError, match=r"^tiny\.yaml: corpora\..*music.*: the source changed while it was read"
    ):
        prepare(file, tmp_path / "store", report)
    assert report_done
    assert prepare(file, tmp_path / "store").prepared  # nothing writes to it any more


def open_all(store: Path, facts: Facts) -> None:
    for one in facts.corpora.values():
        packed_corpus(store, one.fingerprint)
    stored_tokenizer(store, facts.tokenizer)


def damage_manifests(store: Path, content: str) -> None:
    for path in (store / "corpora").glob("*/manifest.json"):
        path.write_text(content)


def each(store: Path, pattern: str, harm: Callable[[Path], object]) -> None:
    for path in list(store.glob(pattern)):
        harm(path)


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def into_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


HARMS: dict[str, Callable[[Path], object]] = {
    **{
        f"{name} {kind}": lambda store, pattern=pattern, harm=harm: each(store, pattern, harm)
        for name, pattern in (
            ("manifest", "corpora/*/manifest.json"),
            ("tokens", "corpora/*/train.bin"),
            ("held-out", "corpora/*/heldout.bin"),
            ("tokeniser", "tokenizers/*/tokenizer.json"),
            ("its settings", "tokenizers/*/tokenizer_config.json"),
        )
        for kind, harm in (
            ("missing", Path.unlink),
            ("cut", cut),
            ("empty", lambda path: path.write_bytes(b"")),
            ("a folder", into_folder),
            ("a dangling link", into_dangling_link),
        )
    },
    **{
        f"manifest {content}": lambda store, content=content: damage_manifests(store, content)
        for content in ("null", "[]", "7", "{}", '{"train": null}', '{"sequence_length": "x", "dtype": "y"}')
    },
    **{
        f"note {content}": lambda store, content=content: each(
            store, "prepared/*.json", lambda path: path.write_text(content)
        )
        for content in ("", "null", "[]", "{}", '{"fingerprint": 7}', '{"fingerprint": "x", "facts": []}')
    },
}


@pytest.mark.parametrize("harm", HARMS)
def test_damaged_data_is_named_and_prepared_again_with_the_same_fingerprints(
    prepared: Prepared, copied: Copy, harm: str
) -> None:
    file, store = copied
    HARMS[harm](store)
    facts, _ = remembered_facts(file, store)
    assert facts == prepared.facts  # what is trained is found
    assert verify_store(Store(store), None)[1]
    if not harm.startswith("note"):
        with pytest.raises(DamageError) as damaged:
            open_all(store, prepared.facts)
        assert "prepare the study's data again" in str(damaged.value)
        assert classify(damaged.value) == DAMAGE
    assert prepare(file, store) == prepared.facts
    assert known_facts(file, store) == prepared.facts
    for one in prepared.facts.corpora.values():
        assert packed_problem(packed_corpus(store, one.fingerprint).folder) is None
    assert not list((store / "building").glob("*"))


def test_a_file_in_the_place_of_the_folder_of_corpora_is_refused_and_what_is_trained_is_found(
    prepared: Prepared, copied: Copy
) -> None:
    file, store = copied
    shutil.rmtree(store / "corpora")
    (store / "corpora").write_text("")
    assert remembered_facts(file, store)[0] == prepared.facts
    with pytest.raises(MissingResourceError, match="cannot be written"):
        prepare(file, store)


def test_preparing_prepared_data_again_writes_no_note(copied: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    file, store = copied
    monkeypatch.setattr(preparing, "write_note", lambda *_: pytest.fail("a note was written again"))
    prepare(file, store)


def test_a_stage_that_meets_damaged_data_fails_as_such_and_can_be_retried_once_it_is_repaired(copied: Copy) -> None:
    file, store = copied
    opened = open_study(str(file.path), (), store)
    register(opened.tree, file, opened.facts, opened.store)
    key = next(iter(opened.tree.stages))
    each(store, "corpora/*/train.bin", cut)
    attempt_code(opened.store, key, Ranks(), StopRequest())
    failed = opened.store.run(key).state()
    assert (failed.state, failed.attempts[-1].failure) == ("failed", DAMAGE)
    assert "train.bin is damaged" in str(failed.reason)
    prepare(file, store)
    assert opened.store.run(key).retry()
    assert len(stage_batches(opened.store.run(key).spec()["recipe"], store)) > 0
