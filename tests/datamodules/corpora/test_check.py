"""`retain data --check` with a hub on localhost, and without a hub."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from retain.datamodules.corpora.check import check_sources
from retain.datamodules.corpora.tokenizer import train_tokenizer
from retain.launchers.cli.views.plan import print_checks
from retain.sweeps.schema.published_corpora import PUBLISHED
from retain.sweeps.schema.read import read_study
from tests.datamodules.corpora.hub_server import commit_of, hub
from tests.datamodules.corpora.published import document, publish, records
from tests.retain import retain, retain_json
from tests.studies import documents_of, tiny_fields

TOKENIZER = "HuggingFaceTB/SmolLM2-135M"
SMALL = {"heldout": 0.2, "tokens": 640, "revision": "main"}


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder for studies, and the environment variables of a hub on localhost that has the published corpora."""
    folder = tmp_path_factory.mktemp("hub")
    for name in PUBLISHED:
        publish(name, folder)
    train_tokenizer(documents_of("general"), 300).save(folder / "models" / TOKENIZER)
    with hub(folder) as address:
        yield folder, {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}


def write_study(folder: Path, corpora: dict[str, Any], tokenizer: dict[str, Any]) -> Path:
    """Write the tiny study with other corpora and another tokeniser."""
    sections = ("pretrain", "posttrain", "finetune")
    fields = tiny_fields(grid={"finetune.corpus": [*corpora]}) | {"corpora": corpora, "tokenizer": tokenizer}
    for section, corpus in zip(sections, [*corpora] * 3, strict=False):
        fields[section] |= {"corpus": corpus, "tokens": 640}
    fields["pretrain"]["warmup"] = fields["posttrain"]["warmup"] = fields["finetune"]["warmup"] = 1
    path = folder / f"{'-'.join(corpora)}.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


BROKEN = {
    "not_found": {"hf": "m-a-p/MusicPail"},
    "wrong_revision": {"published": "musicpile", "revision": "0" * 40},
    "wrong_config": {"published": "chempile", "revision": "main", "config": "abstracts"},
    "wrong_field": {"published": "flan", "template": "{question}"},
    "wrong_split": {"published": "c4", "revision": "main", "split": "training"},
}


@pytest.fixture(scope="module")
def checked(online: tuple[Path, dict[str, str]]) -> dict[str, Any]:
    """The checks of a study in which some sources resolve and the others are broken."""
    folder, environment = online
    corpora = {name: {"published": name} | SMALL for name in PUBLISHED} | BROKEN
    study = write_study(folder, corpora, {"hf": TOKENIZER})
    return dict(retain_json("data", study, "--check", code=3, more=environment))


def test_sources_that_resolve_are_listed_with_their_commit_and_an_override_that_pins_it(
    checked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {row["name"]: row for row in checked["checks"]}
    assert rows["tokenizer"]["commit"] == commit_of(TOKENIZER)
    for name, fields in PUBLISHED.items():
        row = rows[f"corpora.{name}"]
        assert row["problem"] is None
        assert row["commit"] == commit_of(fields["hf"])
        assert row["pin"] == f"corpora.{name}.revision={row['commit']}"
        assert row["begins"] == document(name, records(name, 0)[0])
    print_checks(checked)
    assert f"to pin: tokenizer.revision={commit_of(TOKENIZER)} corpora.c4.revision=" in capsys.readouterr().out


def test_sources_that_do_not_resolve_are_listed_with_a_cure_and_exit_code_3(checked: dict[str, Any]) -> None:
    assert not checked["resolves"]
    problems = {row["name"].removeprefix("corpora."): row["problem"] for row in checked["checks"] if row["problem"]}
    assert set(problems) == set(BROKEN)
    assert "m-a-p/MusicPail: dataset not found on the hub" in problems["not_found"]
    assert f"not found on the hub at revision {'0' * 40}" in problems["wrong_revision"]
    assert "abstracts" in problems["wrong_config"]
    expected = "field 'question' not found (the fields are inputs, targets, task); correct `template:` in the corpus"
    assert expected in problems["wrong_field"]
    assert "training" in problems["wrong_split"]
    assert all("\n" not in problem for problem in problems.values())


@pytest.mark.slow
def test_prepared_data_records_the_commit_that_a_branch_pointed_to(online: tuple[Path, dict[str, str]]) -> None:
    folder, environment = online
    study = write_study(folder, {name: {"published": name} | SMALL for name in ("c4", "flan")}, {"hf": TOKENIZER})
    retain("data", study, "--store", folder / "store", more=environment)
    notes = [json.loads(path.read_text()) for path in (folder / "store" / "prepared").glob("*.json")]
    commits = {note["source"]["hf"]: note.get("commit") for note in notes}
    assert commits == {TOKENIZER: None} | {
        PUBLISHED[name]["hf"]: commit_of(PUBLISHED[name]["hf"]) for name in ("c4", "flan")
    }


@pytest.mark.slow
def test_values_of_a_corpus_on_the_hub_are_read_at_the_commit_that_was_packed(
    online: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    _, environment = online
    study = write_study(tmp_path, {"flan": {"published": "flan", "by": "task"} | SMALL}, {"hf": TOKENIZER})
    document = retain_json("data", study, "--store", tmp_path / "store", more=environment)
    (corpus,) = document["corpora"]
    assert len(corpus["values"]) > 0
    assert corpus["values"] != ["none"]


def test_an_unreachable_hub_is_reported_once_and_within_seconds(tmp_path: Path) -> None:
    study = write_study(tmp_path, {name: {"published": name} for name in PUBLISHED}, {"hf": TOKENIZER})
    checkpoint = f"model={{hf: {TOKENIZER}, revision: main}}"
    start = time.monotonic()
    output = retain_json("data", study, checkpoint, "--check", code=3, more={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert time.monotonic() - start < 60
    first, *others = [row["problem"] for row in output["checks"]]
    assert [row["name"] for row in output["checks"][:2]] == ["model", "tokenizer"]
    assert "the hub does not answer" in first
    assert set(others) == {"not checked, because the hub does not answer (see above)"}


def test_local_sources_need_no_hub(tmp_path: Path) -> None:
    publish("musicpile", tmp_path)
    (tmp_path / "a.txt").write_text("some text")
    local = {"published": "musicpile", "files": "datasets"}
    study = write_study(tmp_path, {"a": {"files": "a.txt"}, "b": local, "c": {"package": "chemicals"}}, {"train": 300})
    checks = check_sources(read_study(str(study)))
    assert [(check.begins is not None, check.problem, check.pin) for check in checks] == [
        (False, None, None),
        *[(True, None, None)] * 3,
    ]


def test_a_damaged_local_tokeniser_does_not_resolve(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    train_tokenizer(documents_of("general"), 300).save(tmp_path / "mine")
    (tmp_path / "mine" / "tokenizer.json").write_text("{")
    study = write_study(tmp_path, {"a": {"files": "a.txt"}}, {"hf": "./mine"})
    tokenizer = next(one for one in check_sources(read_study(str(study))) if one.name == "tokenizer")
    assert tokenizer.problem is not None
    assert "tokenizer.json cannot be read" in tokenizer.problem


def test_a_revision_of_a_local_data_set_does_not_resolve(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jsonl").write_text('{"text": "one"}\n')
    study = write_study(tmp_path, {"a": {"hf": "./mine", "revision": "v1.0"}}, {"train": 300})
    corpus = next(one for one in check_sources(read_study(str(study))) if one.name == "corpora.a")
    assert "./mine is a local folder, which has no revisions; remove revision: v1.0" in str(corpus.problem)
