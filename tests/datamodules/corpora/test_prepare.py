import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retain.datamodules.corpora.known import known_facts
from retain.datamodules.corpora.prepare import prepare
from retain.datamodules.corpora.prepared import packed_corpus, packed_problem
from retain.datamodules.corpora.tokenizer import train_tokenizer
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.base.processes.names import process_name
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.tree import expand
from tests.conftest import Prepared
from tests.studies import documents_of, tiny_study, write_corpus

PREPARE = """
import json, sys, time
from pathlib import Path
from retain.datamodules.corpora.prepare import prepare
from retain.sweeps.schema.read import read_study
study, store, wait_at, go = sys.argv[1:]
def report(what, documents, tokens):
    if what == wait_at:
        print("waiting", flush=True)
        while not Path(go).exists():
            time.sleep(0.01)
facts = prepare(read_study(study), Path(store), report)
print(json.dumps([facts.tokenizer, *sorted(corpus.fingerprint for corpus in facts.corpora.values())]))
"""


def start(
    study: Path, store: Path, wait_at: str = "", go: Path = Path("absent"), **environment: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, str(study), str(store), wait_at, str(go)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)


def waiting(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "waiting\n"


def fingerprints(facts: Facts) -> list[str]:
    return [facts.tokenizer, *sorted(corpus.fingerprint for corpus in facts.corpora.values())]


def contents(store: Path) -> list[str]:
    return sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())


def test_prepared_data_is_found_without_reading_the_corpora(prepared: Prepared) -> None:
    reported: list[str] = []
    assert prepare(prepared.file, prepared.store, lambda what, *_: reported.append(what)) == prepared.facts
    assert reported == []
    assert known_facts(prepared.file, prepared.store) == prepared.facts
    assert prepared.facts.prepared


def test_facts_match_the_packed_corpora(prepared: Prepared) -> None:
    for facts in prepared.facts.corpora.values():
        corpus = packed_corpus(prepared.store, facts.fingerprint)
        assert (facts.train, facts.heldout) == (corpus.count("train"), corpus.count("heldout"))
        assert packed_problem(corpus.folder) is None
    assert prepared.facts.vocabulary == 320


def test_an_unprepared_study_expands_with_provisional_keys(prepared: Prepared, tmp_path: Path) -> None:
    facts = known_facts(prepared.file, tmp_path)
    assert not facts.prepared
    assert facts.vocabulary == 320
    before, after = expand(prepared.file, facts), expand(prepared.file, prepared.facts)
    assert before.provisional
    assert not after.provisional
    assert len(before.stages) == len(after.stages)
    assert not before.stages.keys() & after.stages.keys()
    assert list(tmp_path.iterdir()) == []


def test_fingerprints_do_not_depend_on_paths_times_or_stores(prepared: Prepared, tmp_path: Path) -> None:
    file = read_study(str(tiny_study(tmp_path / "elsewhere" / "deeper")))
    assert fingerprints(prepare(file, tmp_path / "store")) == fingerprints(prepared.facts)


def test_fingerprints_do_not_depend_on_parallelism(prepared: Prepared, tmp_path: Path) -> None:
    one = start(prepared.file.path, tmp_path / "one", RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    many = start(prepared.file.path, tmp_path / "many", RAYON_NUM_THREADS="7", TOKENIZERS_PARALLELISM="true")
    for process in (one, many):
        assert json.loads(process.communicate()[0]) == fingerprints(prepared.facts)


def test_two_processes_may_prepare_the_same_study_at_the_same_time(prepared: Prepared, tmp_path: Path) -> None:
    store, go = tmp_path / "store", tmp_path / "go"
    both = [start(prepared.file.path, store, "general", go) for _ in range(2)]
    assert all(waiting(process) for process in both)
    assert len(list((store / "building").iterdir())) == 2
    go.touch()
    for process in both:
        assert json.loads(process.communicate()[0]) == fingerprints(prepared.facts)
        assert process.returncode == 0
    assert contents(store) == contents(prepared.store)
    assert list((store / "building").iterdir()) == []
    assert all(packed_problem(folder) is None for folder in (store / "corpora").iterdir())


@pytest.mark.parametrize("wait_at", ["general", "chemistry"])
def test_a_killed_preparation_leaves_no_partial_data_and_the_next_one_gives_the_same_result(
    prepared: Prepared, tmp_path: Path, wait_at: str
) -> None:
    store = tmp_path / "store"
    process = start(prepared.file.path, store, wait_at)
    assert waiting(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not known_facts(prepared.file, store).prepared
    assert len(list((store / "building").iterdir())) == 1
    for folder in (store / "corpora").glob("*"):
        assert packed_problem(folder) is None
    assert fingerprints(prepare(prepared.file, store)) == fingerprints(prepared.facts)
    assert list((store / "building").iterdir()) == []
    assert contents(store) == contents(prepared.store)


def test_build_folders_of_dead_processes_are_removed_and_those_of_other_machines_kept(
    prepared: Prepared, tmp_path: Path
) -> None:
    machine = process_name().split(".")[0]
    elsewhere, here = (tmp_path / "building" / f"{name}.999999999.5-ab" for name in ("node7", machine))
    for folder in (elsewhere, here):
        folder.mkdir(parents=True)
    prepare(prepared.file, tmp_path)
    assert elsewhere.is_dir()
    assert not here.exists()


def test_a_changed_corpus_is_prepared_again_and_the_others_keep_their_fingerprints(tmp_path: Path) -> None:
    path = tiny_study(tmp_path / "study", tokenizer={"hf": "tok"})
    train_tokenizer(documents_of("general"), 320).save(tmp_path / "study" / "tok")
    before = prepare(read_study(str(path)), tmp_path / "store")
    write_corpus(tmp_path / "study", "music", count=300)
    assert not known_facts(read_study(str(path)), tmp_path / "store").prepared
    after = prepare(read_study(str(path)), tmp_path / "store")
    changed = [name for name in before.corpora if before.corpora[name] != after.corpora[name]]
    assert changed == [("music", 32)]
    assert after.tokenizer == before.tokenizer


def test_a_trained_tokeniser_changes_with_its_corpora(tmp_path: Path) -> None:
    path = tiny_study(tmp_path / "study")
    before = prepare(read_study(str(path)), tmp_path / "store")
    write_corpus(tmp_path / "study", "music", count=300)
    after = prepare(read_study(str(path)), tmp_path / "store")
    assert after.tokenizer != before.tokenizer


def test_another_end_of_text_token_changes_the_fingerprints_of_tokeniser_and_corpora(tmp_path: Path) -> None:
    path = tiny_study(tmp_path / "study", tokenizer={"hf": "tok"})
    train_tokenizer(documents_of("general"), 320).save(tmp_path / "study" / "tok")
    before = prepare(read_study(str(path)), tmp_path / "store")
    (tmp_path / "study" / "tok" / "tokenizer_config.json").write_text('{"eos_token": "!"}')
    after = prepare(read_study(str(path)), tmp_path / "store")
    assert after.tokenizer != before.tokenizer
    assert not {corpus.fingerprint for corpus in after.corpora.values()} & {
        corpus.fingerprint for corpus in before.corpora.values()
    }


def test_missing_files_of_a_local_tokeniser_are_named(tmp_path: Path) -> None:
    path = tiny_study(tmp_path / "study", tokenizer={"hf": "tok"})
    (tmp_path / "study" / "tok").mkdir()
    with pytest.raises(
        MissingResourceError, match=r"tokenizer\.hf: .*/tok has no tokenizer\.json and no tokenizer_config\.json"
    ):
        known_facts(read_study(str(path)), tmp_path / "store")


def test_every_sequence_length_of_the_grid_is_prepared(tmp_path: Path) -> None:
    file = read_study(str(tiny_study(tmp_path / "study", grid={"sequence_length": [16, 32]})))
    facts = prepare(file, tmp_path / "store")
    assert {length for _, length in facts.corpora} == {16, 32}
    for (_, length), corpus in facts.corpora.items():
        assert packed_corpus(tmp_path / "store", corpus.fingerprint).sequences("train").shape[1] == length


def test_a_corpus_deleted_from_the_store_is_prepared_again(prepared: Prepared, tmp_path: Path) -> None:
    store = shutil.copytree(prepared.store, tmp_path / "store")
    shutil.rmtree(store / "corpora" / prepared.facts.corpora["music", 32].fingerprint)
    assert not known_facts(prepared.file, store).prepared
    assert prepare(prepared.file, store) == prepared.facts


def test_a_corpus_missing_from_the_store_is_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"corpus abc not found in .*; prepare the study's data again"):
        packed_corpus(tmp_path, "abc")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            {"corpora.music.files": "absent.jsonl"},
            MissingResourceError,
            r"tiny\.yaml: corpora\.music: files: no file matches absent\.jsonl",
        ),
        (
            {"corpora.music.text": "body"},
            StudyError,
            r"tiny\.yaml: corpora\.music: .*field 'body' not found \(the fields are text\); correct `text:` in the corpus",
        ),
        (
            {"corpora.music": {"package": "numpy"}},
            StudyError,
            r"tiny\.yaml: corpora\.music: package: unknown corpus 'numpy'; choose one of docstrings, ",
        ),
        (
            {"tokenizer.train": 30_000},
            StudyError,
            r"tokenizer\.train: the corpora yield only \d+ of 30000 entries",
        ),
        ({"tokenizer": {"hf": "not/a/name"}}, MissingResourceError, r"tokenizer\.hf: not/a/name cannot be downloaded"),
    ],
    ids=["file", "field", "package", "entries", "tokeniser"],
)
def test_errors_of_preparation_name_the_field_and_the_cure(
    tmp_path: Path, overrides: dict[str, Any], error: type[Exception], message: str
) -> None:
    file = read_study(str(tiny_study(tmp_path / "study", **overrides)))
    with pytest.raises(error, match=message):
        prepare(file, tmp_path / "store")


def test_an_unwritable_store_is_named_with_the_cure(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file, not a folder")
    with pytest.raises(
        MissingResourceError,
        match=r"store: cannot be written .*; choose another store with --store",
    ):
        prepare(prepared.file, tmp_path / "store")


def test_a_corpus_too_small_for_its_budget_is_refused_once_it_is_prepared(tmp_path: Path) -> None:
    file = read_study(str(tiny_study(tmp_path / "study", **{"pretrain.tokens": "1M"})))
    assert expand(file, known_facts(file, tmp_path / "store")).provisional
    facts = prepare(file, tmp_path / "store")
    with pytest.raises(
        StudyError,
        match=r"tiny\.yaml: pretrain\.tokens: 1,000,000 tokens exceed the training split of corpus general, which",
    ):
        expand(file, facts)


def test_a_corpus_that_is_too_small_says_what_it_was_read_as(tmp_path: Path) -> None:
    file = read_study(str(tiny_study(tmp_path / "study", **{"corpora.general.separator": None})))
    with pytest.raises(
        StudyError, match=r"\(it has 1 document; .* one, unless corpora\.general\.separator divides it\)"
    ):
        expand(file, prepare(file, tmp_path / "store"))


@pytest.mark.parametrize(
    "use",
    [{"finetune.corpus": "own"}, {"pretrain.mix": {"own": {"tokens": 320}}}, {"evaluate": {"corpora": ["own"]}}],
    ids=["trained on", "mixed in", "evaluated on"],
)
def test_an_empty_held_out_split_is_refused_once_it_is_prepared(use: dict[str, Any], tmp_path: Path) -> None:
    own = {"files": "music.jsonl", "heldout": 1e-12}
    file = read_study(str(tiny_study(tmp_path / "study", **{"corpora.own": own} | use)))
    with pytest.raises(StudyError, match=r"tiny\.yaml: corpora\.own\.heldout: the held-out split would be empty"):
        expand(file, prepare(file, tmp_path / "store"))
