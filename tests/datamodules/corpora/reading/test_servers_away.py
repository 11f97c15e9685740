"""What a user may rely on where the data is prepared and the servers of its URLs cannot be asked, or say that it is gone."""

import functools
import os
import re
import shutil
import socket
import struct
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from retain.datamodules.corpora.reading import remote, remote_streams
from retain.datamodules.corpora.reading.report import ignore_progress
from retain.launchers.search.derived_studies import open_search
from tests.datamodules.servers import running
from tests.retain import retain_here, retain_json
from tests.studies import tiny_study

FILES = {"general": "general.txt", "music": "music.jsonl", "chemistry": "chemistry.jsonl"}

ONE = ("pretrain.exposure=0", "finetune.lr=2e-3")
"""The overrides that leave one trial."""


@dataclass
class Site:
    """A study whose corpora are at a server, and the store in which it is prepared."""

    study: Path
    store: Path
    folder: Path
    """What the server serves."""
    statuses: dict[str, int] = field(default_factory=dict)
    """What the server answers instead of a file."""
    broken: list[str] = field(default_factory=list)
    """The paths that are answered by breaking the connection."""
    asked: list[str] = field(default_factory=list)


def _handler(site: Site) -> type[SimpleHTTPRequestHandler]:
    class Handler(SimpleHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if not self.refused():
                super().do_HEAD()

        def do_GET(self) -> None:
            if not self.refused():
                super().do_GET()

        def refused(self) -> bool:
            site.asked.append(self.path)
            if self.path in site.broken:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return True
            status = site.statuses.get(self.path.lstrip("/"))
            if status is not None:
                self.send_error(status)
            return status is not None

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


def server_of(site: Site, port: int = 0) -> ThreadingHTTPServer:
    return ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_handler(site), directory=str(site.folder)))


@pytest.fixture(scope="module")
def prepared_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A study that is prepared while its server answers; the server is away afterwards."""
    folder = tmp_path_factory.mktemp("away")
    site = Site(tiny_study(folder), folder / "store", folder / "served")
    site.folder.mkdir()
    server = server_of(site)
    with running(server) as port:
        fields = yaml.safe_load(site.study.read_text())
        for name in ("general", "music"):
            shutil.copy2(folder / FILES[name], site.folder)
            fields["corpora"][name]["files"] = f"http://127.0.0.1:{port}/{FILES[name]}"
        site.study.write_text(yaml.safe_dump(fields))
        retain_here("data", site.study, "--store", site.store)
    return site


@pytest.fixture
def site(prepared_site: Site, tmp_path: Path) -> Site:
    """The same, to be changed: the study stays where it is, as its folder identifies local files."""
    store = Path(shutil.copytree(prepared_site.store, tmp_path / "store"))
    return Site(prepared_site.study, store, Path(shutil.copytree(prepared_site.folder, tmp_path / "served")))


def port_of(site: Site) -> int:
    return int(yaml.safe_load(site.study.read_text())["corpora"]["music"]["files"].split(":")[2].split("/")[0])


def said_of(errors: str, name: str) -> list[str]:
    return [line for line in errors.splitlines() if f"corpora.{name}: " in line]


def keys(document: Any) -> list[str]:
    return [one["key"] for one in document["stages"]]


def test_a_study_whose_data_is_prepared_is_planned_and_trained_without_its_servers_which_is_said_once(
    site: Site,
) -> None:
    planned = retain_here("plan", site.study, "--store", site.store)
    for name in ("general", "music"):
        (said,) = said_of(planned.stderr, name)
        assert (
            "cannot be read (no connection to the server: Connection refused); using its data as prepared on 20" in said
        )
    assert not said_of(planned.stderr, "chemistry")
    prepared = retain_here("data", site.study, "--store", site.store)
    assert len(said_of(prepared.stderr, "music")) == 1
    assert "using its data as prepared on" in prepared.stderr
    submitted = retain_here("submit", site.study, "--store", site.store, "--dry-run")
    assert len(said_of(submitted.stderr, "music")) == 1
    trained = retain_here("run", site.study, "--store", site.store, *ONE)
    assert len(said_of(trained.stderr, "music")) == 1
    assert {one["state"] for one in retain_json("status", site.study, "--store", site.store, *ONE)["runs"]} == {"done"}


def test_a_search_says_once_that_it_uses_its_data_as_prepared(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    fields = yaml.safe_load(site.study.read_text()) | {
        "study": "searched",
        "search": {"axes": {"finetune.lr": [1e-3, 2e-3]}},
    }
    del fields["grid"]
    study = site.study.with_name("searched.yaml")
    study.write_text(yaml.safe_dump(fields))
    for report in (None, ignore_progress, ignore_progress):  # its checks, its beginning, and its resumption
        open_search(str(study), [], site.store, report)
    (said,) = said_of(capsys.readouterr().err, "music")
    assert "using its data as prepared on" in said


def test_the_keys_without_the_servers_are_those_with_them(site: Site) -> None:
    away = keys(retain_json("plan", site.study, "--store", site.store))
    with running(server_of(site, port_of(site))):
        assert keys(retain_json("plan", site.study, "--store", site.store)) == away
        assert "using its data" not in retain_here("data", site.study, "--store", site.store).stderr


def test_data_that_is_not_prepared_needs_its_server(site: Site, tmp_path: Path) -> None:
    for overrides in (["--store", tmp_path / "empty"], ["--store", site.store, "sequence_length=16"]):
        for verb in ("plan", "data", "run"):
            done = retain_here(verb, site.study, *overrides, code=3)
            assert "cannot be read (no connection to the server: Connection refused); check the URL" in done.stderr
            assert len(done.stderr.splitlines()) == 1


def test_a_local_corpus_that_changed_is_not_taken_as_prepared(site: Site) -> None:
    file = site.study.parent / FILES["chemistry"]
    before, then = file.read_bytes(), file.stat().st_mtime_ns
    try:
        file.write_bytes(before + b'{"text": "one more"}\n')
        assert "cannot be read" in retain_here("run", site.study, "--store", site.store, code=3).stderr
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(then, then))


@pytest.mark.parametrize("status", [404, 410, 401, 403])
def test_a_server_that_says_that_a_file_is_gone_or_forbidden_is_believed_as_a_disk_is(site: Site, status: int) -> None:
    site.statuses["music.jsonl"] = status
    with running(server_of(site, port_of(site))):
        for verb in ("plan", "data", "run"):
            done = retain_here(verb, site.study, "--store", site.store, code=3)
            assert "corpora.music: files: " in done.stderr
            assert "using its data" not in done.stderr
        status_now = retain_here("status", site.study, "--store", site.store)
        assert "showing stages that were trained on the data as last prepared" in status_now.stderr


def test_a_server_that_is_busy_counts_as_one_that_cannot_be_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_streams, "FIRST_WAITS_S", (0.01,))
    site.statuses["music.jsonl"] = 503
    with running(server_of(site, port_of(site))):
        planned = retain_here("plan", site.study, "--store", site.store)
    (said,) = said_of(planned.stderr, "music")
    assert "the server answers 503" in said


def test_a_file_that_changed_at_its_server_is_prepared_again(site: Site) -> None:
    with (site.folder / "music.jsonl").open("a") as stream:
        stream.writelines(f'{{"text": "{number} is one more tune"}}\n' for number in range(100))
    before = keys(retain_json("plan", site.study, "--store", site.store))
    with running(server_of(site, port_of(site))):
        retain_here("data", site.study, "--store", site.store)
    planned = retain_here("plan", site.study, "--store", site.store)  # away again: the newer data is the last
    assert "using its data as prepared on" in planned.stderr
    assert keys(retain_json("plan", site.study, "--store", site.store)) != before


def test_a_variable_that_names_another_url_than_before_needs_its_server(site: Site) -> None:
    place = f"http://127.0.0.1:{port_of(site)}"
    overrides = ["corpora.music.files=$TUNES/music.jsonl", "--store", site.store]
    with running(server_of(site, port_of(site))):
        retain_here("data", site.study, *overrides, more={"TUNES": place})
    planned = retain_here("plan", site.study, *overrides, more={"TUNES": place})
    assert "using its data as prepared on" in said_of(planned.stderr, "music")[0]
    other = retain_here("plan", site.study, *overrides, more={"TUNES": f"{place}/other"}, code=3)
    assert "/other/music.jsonl cannot be read" in other.stderr


@pytest.mark.parametrize("time", ["1e300", "1e18", '"today"'])
def test_a_damaged_note_on_a_server_counts_as_none_and_is_found_by_verify(site: Site, time: str) -> None:
    for note in (site.store / "prepared" / "asked").iterdir():
        note.write_text(re.sub('"time": .*', f'"time": {time}', note.read_text()))
    assert "cannot be read" in retain_here("plan", site.study, "--store", site.store, code=3).stderr
    assert "time" in retain_here("verify", "--store", site.store, code=1).stdout
    with running(server_of(site, port_of(site))):
        retain_here("data", site.study, "--store", site.store)
    retain_here("verify", "--store", site.store)
    retain_here("plan", site.study, "--store", site.store)


def test_a_file_in_the_place_of_the_folder_of_notes_is_found_by_verify(site: Site) -> None:
    folder = site.store / "prepared" / "asked"
    shutil.rmtree(folder)
    folder.write_text("")
    assert "asked is not a folder; delete it" in retain_here("verify", "--store", site.store, code=1).stdout


def test_a_folder_whose_server_cannot_be_asked_is_not_taken_for_an_empty_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_streams, "FIRST_WAITS_S", (0.01,))
    (site.folder / "tunes" / "more").mkdir(parents=True)
    for place in ("tunes/1.jsonl", "tunes/more/2.jsonl"):
        shutil.copy2(site.folder / FILES["music"], site.folder / place)
    overrides = [f"corpora.music.files=http://127.0.0.1:{port_of(site)}/tunes/", "--store", site.store]
    with running(server_of(site, port_of(site))):
        retain_here("data", site.study, *overrides)
        planned = keys(retain_json("plan", site.study, *overrides))
        site.broken.append("/tunes/more/")
        broken = retain_here("plan", site.study, *overrides)
    assert (
        "/tunes/ cannot be read (no connection to the server: Connection reset by peer); using its data"
        in broken.stderr
    )
    away = retain_here("plan", site.study, *overrides)
    assert "/tunes/ cannot be read (no connection to the server: Connection refused); using its data" in away.stderr
    assert keys(retain_json("plan", site.study, *overrides)) == planned


def test_a_server_that_kept_us_waiting_is_not_asked_again_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_SILENT", {})
    monkeypatch.setattr(remote, "WAITED_S", 0.0)
    monkeypatch.setattr(remote_streams, "FIRST_WAITS_S", ())
    site.statuses |= {"music.jsonl": 503, "general.txt": 503}
    with running(server_of(site, port_of(site))):
        planned = retain_here("plan", site.study, "--store", site.store)
    assert len(site.asked) <= 2
    assert f"/{FILES['general']} cannot be read" in said_of(planned.stderr, "general")[0]
    assert f"/{FILES['music']} cannot be read" in said_of(planned.stderr, "music")[0]


def test_a_server_that_accepts_and_never_answers_counts_as_away_after_a_while_which_is_said(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_SILENT", {})
    monkeypatch.setattr(remote, "ASKED_S", 0.5)
    monkeypatch.setattr(remote, "SAID_S", 0.2)
    monkeypatch.setattr(remote, "WAITED_S", 0.1)
    with socket.create_server(("127.0.0.1", port_of(site))):  # connections wait in its queue
        planned = retain_here("plan", site.study, "--store", site.store)
    for name in ("general", "music"):
        (said,) = said_of(planned.stderr, name)
        assert "the server does not answer in time); using its data as prepared on" in said
    (waiting,) = [line for line in planned.stderr.splitlines() if "has not answered for" in line]
    assert f"http://127.0.0.1:{port_of(site)} " in waiting
