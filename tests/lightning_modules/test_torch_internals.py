import shutil
from pathlib import Path

import pytest
import torch
from torch._inductor.codecache import get_lock_dir
from torch.utils._filelock import FileLock

from retain.lightning_modules.compiled import clear_damaged_builds


def a_library() -> Path:
    """A whole one."""
    return Path(torch.__file__).parent / "lib" / "libc10.so"


@pytest.mark.parametrize("building", [False, True], ids=["its builder died", "it is being built"])
def test_a_library_whose_linking_was_killed_is_removed_from_the_cache(
    building: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "ab"
    (folder / "abcd.main_CxxBuild").mkdir(parents=True)
    cut_short, whole = folder / "abcd.main.so", folder / "efgh.main.so"
    cut_short.touch()
    shutil.copy(a_library(), whole)
    if building:
        with FileLock(str(Path(get_lock_dir()) / "abcd.lock")):
            clear_damaged_builds()
    else:
        clear_damaged_builds()
    assert cut_short.exists() == building
    assert whole.exists()


def test_a_library_that_lost_its_end_when_a_machine_went_down_is_removed_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "ab"
    folder.mkdir()
    whole, cut, empty = (folder / f"{name}.main.so" for name in ("whole", "cut", "empty"))
    shutil.copy(a_library(), whole)
    cut.write_bytes(whole.read_bytes()[:4096])
    empty.touch()
    clear_damaged_builds()
    assert [path for path in (whole, cut, empty) if path.exists()] == [whole]
