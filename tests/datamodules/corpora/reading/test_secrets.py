"""The passwords of URLs are in no output, and in no file of a store but those that need them."""

import base64
import functools
import json
import shutil
import stat
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from retain.launchers.planning.opened_study import open_study
from retain.launchers.search.derived_studies import write_confirmation, write_points
from retain.results.store.study_files import POINTS_STUDY
from tests.datamodules.servers import running
from tests.launchers.search.searches import block, searching
from tests.retain import retain_here
from tests.studies import tiny_study

USER, PASSWORD, TOKEN = "reader", "s3cretPassw0rd", "t0kenOfSignature"
FILES = {"general": "general.txt", "music": "music.jsonl"}
ONE = ("pretrain.exposure=0", "finetune.lr=2e-3")
"""The overrides that leave one trial."""


class _Guarded(SimpleHTTPRequestHandler):
    """Serves files to whoever knows the user and the password."""

    def do_HEAD(self) -> None:
        if self.admitted():
            super().do_HEAD()

    def do_GET(self) -> None:
        if self.admitted():
            super().do_GET()

    def admitted(self) -> bool:
        wanted = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        admitted = self.headers.get("Authorization") == f"Basic {wanted}"
        if not admitted:
            self.send_error(401)
        return admitted

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def url(port: int, name: str, password: str = PASSWORD) -> str:
    return f"http://{USER}:{password}@127.0.0.1:{port}/{name}?token={TOKEN}&page=1"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A study, and the port of the server that its corpora are at."""
    study = tiny_study(tmp_path / "study")
    folder = tmp_path / "served"
    folder.mkdir()
    for name in FILES.values():
        shutil.copy2(study.parent / name, folder)
    with running(ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Guarded, directory=str(folder)))) as port:
        fields = yaml.safe_load(study.read_text())
        for name, file in FILES.items():
            fields["corpora"][name]["files"] = url(port, file)
        study.write_text(yaml.safe_dump(fields))
        yield study, port


def said(*arguments: str | Path, code: int = 0) -> str:
    """What a verb says, which has no secret in it."""
    done = retain_here(*arguments, code=code)
    text = done.stdout + done.stderr
    assert PASSWORD not in text
    assert TOKEN not in text
    return text


def with_secrets(folder: Path) -> list[Path]:
    """The files below a folder that hold a secret."""
    secrets = (PASSWORD.encode(), TOKEN.encode())
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(secret in path.read_bytes() for secret in secrets)
    ]


def test_a_password_is_in_no_output_and_in_no_file_that_others_read(served: tuple[Path, int], tmp_path: Path) -> None:
    study, port = served
    store = tmp_path / "store"
    shown = f"http://{USER}:***@127.0.0.1:{port}/music.jsonl?token=***&page=1"
    assert shown in said("data", study, "--check", "--json")
    for verb in ("data", "plan", "run", "status", "results", "report"):
        said(verb, study, *ONE, "--store", store)
    said("verify", study, "--store", store)
    for verb in ("plan", "status", "results"):
        said(verb, study, *ONE, "--store", store, "--json")
    notes = with_secrets(store)
    assert {path.parent.relative_to(store) for path in notes} == {Path("prepared/asked")}
    assert {stat.S_IMODE(path.stat().st_mode) for path in notes} == {0o600}
    assert any(shown in path.read_text() for path in (store / "prepared").glob("*.json"))
    (page,) = (store / "studies").rglob("report.html")
    assert f"http://{USER}:***@127.0.0.1:{port}/music.jsonl" in page.read_text()


def test_a_password_of_an_override_is_in_no_command_that_is_printed_and_in_no_name_of_a_folder(
    served: tuple[Path, int], tmp_path: Path
) -> None:
    study, port = served
    override, store = f"corpora.music.files={url(port, 'music.jsonl')}", tmp_path / "store"
    assert f"files=http://{USER}:***@127" in said("plan", study, override, "--store", store)
    said("report", study, override, "--store", store)
    (page,) = (store / "studies").rglob("report.html")
    assert "music.files=http:__" in page.parent.name
    assert not with_secrets(page.parent)


def test_a_password_that_a_variable_holds_is_in_no_study_that_a_search_writes(
    served: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = served
    study.write_text(study.read_text().replace(PASSWORD, "$SECRET").replace(TOKEN, "$SIGNED"))
    monkeypatch.setenv("SECRET", PASSWORD)
    monkeypatch.setenv("SIGNED", TOKEN)
    searched = searching(str(study), tmp_path / "store", block(axes={"finetune.lr": [1e-4, 5e-4]})).searched
    points = {"p0": {"finetune.lr": 1e-4}}
    write_points(searched, points)
    confirm = write_confirmation(searched, points, None)
    assert not with_secrets(searched.folder)
    for derived in (confirm, searched.folder / POINTS_STUDY):
        assert not open_study(str(derived), (), searched.store.root).tree.provisional


def test_a_password_is_in_no_explanation_of_a_run_that_prepares_a_corpus(
    served: tuple[Path, int], tmp_path: Path
) -> None:
    study, port = served
    store = tmp_path / "store"
    lines = (f'{{"text": "document {number}, which is held out"}}\n' for number in range(100))
    (tmp_path / "served" / "held.jsonl").write_text("".join(lines))
    held = json.dumps({"files": url(port, "held.jsonl")})
    said("data", study, f"corpora.chemistry.heldout={held}", "execution.data.part=30k", "--store", store)
    runs = [path.parent.name for path in with_secrets(store) if path.name == "stage.json"]
    assert any("token=***" in said("why", study, key, "--store", store, "--json") for key in runs)
    said("why", study, runs[0], runs[1], "--store", store)


def test_a_password_is_in_no_error(served: tuple[Path, int], tmp_path: Path) -> None:
    study, port = served
    for place, code, words in (
        (url(port, "nothing.jsonl"), 3, "no file matches http://"),
        (url(1, "music.jsonl"), 3, "Connection refused"),
        (f"http://{USER}:{PASSWORD}@no-such-host.invalid/a.jsonl?sig={TOKEN}", 3, "no connection to the server"),
        (url(port, "music.jsonl").replace("http:", "https:"), 3, "no encrypted connection"),
        (url(port, "music.jsonl").replace(f"{USER}:", "another:"), 3, "the server answers 401"),
        (url(port, "music.docx"), 3, "no file matches"),
        (url(port, "music.jsonl").replace("http:", "nosuch:"), 2, "nothing reads nosuch://"),
        (f"https://{USER}:{PASSWORD}@host/$NO_SUCH?token={TOKEN}", 2, "the variable $NO_SUCH is not set"),
    ):
        for verb in ("plan", "data", "run"):
            text = said(verb, study, f"corpora.music.files={place}", "--store", tmp_path / "store", code=code)
            assert words in text
        said("data", study, f"corpora.music.files={place}", "--check", code=3)
    said("plan", study, f"corpora.music.nosuch={url(port, 'a')}", code=2)
    said("plan", study, f"sequence_length={url(port, 'a')}", code=2)
    assert not with_secrets(tmp_path / "store")
