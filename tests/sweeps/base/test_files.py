"""Atomic writes: readers never see a partial file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from retain.sweeps.base.files import sync_folder, write_json, write_text


def test_writing_replaces_the_text_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_text(tmp_path / "note.txt", "old")
    write_text(tmp_path / "note.txt", "né\n")
    assert (tmp_path / "note.txt").read_text(encoding="utf-8") == "né\n"
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_text(tmp_path / "note.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "note.txt", "new \ud800")
    assert (tmp_path / "note.txt").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def test_a_value_that_is_not_valid_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "state.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "state.json").read_text()) == {"loss": 1.5}


def test_concurrent_readers_only_see_complete_files(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"value": [0] * 20_000})
    code = (
        "import sys; from pathlib import Path; from retain.sweeps.base.files import write_json\n"
        "for number in range(60): write_json(Path(sys.argv[1]), {'value': [number] * 20_000})"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    seen = set()
    while writer.poll() is None:
        seen.add((*set(values := json.loads(path.read_text())["value"]), len(values)))
    assert writer.returncode == 0
    assert {part[-1] for part in seen} == {20_000}
    assert {len(part) for part in seen} == {2}
    assert len(seen) > 1


def test_a_folder_can_be_synced_to_disk(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_text("a")
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "absent")
