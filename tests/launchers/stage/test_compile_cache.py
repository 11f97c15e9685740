"""Compiled steps are shared through the store with this user's own processes, and with nobody else's."""

from pathlib import Path

import pytest
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from retain.launchers.speed.folder import FOLDER
from retain.launchers.stage.environment import compile_cache
from retain.results.store.garbage import find_waste
from retain.results.store.runs import Store


@pytest.fixture(autouse=True)
def no_place_of_the_developers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)


def test_every_process_of_a_user_finds_the_same_private_folder(tmp_path: Path) -> None:
    places = compile_cache(tmp_path)
    assert places == compile_cache(tmp_path)
    inductor, triton = Path(places["TORCHINDUCTOR_CACHE_DIR"]), Path(places["TRITON_CACHE_DIR"])
    assert inductor.parent == triton.parent
    (mine,) = (tmp_path / FOLDER).iterdir()
    assert inductor.is_relative_to(mine)
    assert mine.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o755])
def test_a_folder_that_others_may_reach_is_not_used(mode: int, tmp_path: Path) -> None:
    compile_cache(tmp_path)
    (mine,) = (tmp_path / FOLDER).iterdir()
    mine.chmod(mode)
    assert compile_cache(tmp_path) == {}


def test_a_link_to_another_folder_is_not_used(tmp_path: Path) -> None:
    compile_cache(tmp_path)
    (mine,) = (tmp_path / FOLDER).iterdir()
    mine.rename(tmp_path / "elsewhere")
    mine.symlink_to(tmp_path / "elsewhere")
    assert compile_cache(tmp_path) == {}


def test_a_place_that_the_user_has_chosen_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    assert compile_cache(tmp_path) == {}


def test_the_place_that_torch_enters_when_it_is_imported_is_none_that_the_user_has_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    assert compile_cache(tmp_path)["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path))


def test_a_store_that_cannot_be_written_has_none(tmp_path: Path) -> None:
    (tmp_path / FOLDER.parts[0]).write_text("in the way")
    assert compile_cache(tmp_path) == {}


def test_gc_leaves_it_alone(tmp_path: Path) -> None:
    place = Path(compile_cache(tmp_path)["TORCHINDUCTOR_CACHE_DIR"])
    place.mkdir()
    (place / ".123.456.tmp").write_text("being written")
    assert find_waste(Store(tmp_path), None, True) == []
    assert Store(tmp_path).runs() == []
