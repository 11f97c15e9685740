from pathlib import Path

import pytest
from torch._inductor.codecache import get_lock_dir
from torch.utils._filelock import FileLock

from lightning_modules.compiled import clear_interrupted_builds


@pytest.mark.parametrize("building", [False, True], ids=["its builder died", "it is being built"])
def test_a_library_whose_linking_was_killed_is_removed_from_the_cache(
    building: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "ab"
    (folder / "abcd.main_CxxBuild").mkdir(parents=True)
    cut_short, whole = folder / "abcd.main.so", folder / "efgh.main.so"
    cut_short.touch()
    whole.write_bytes(b"whole")
    if building:
        with FileLock(str(Path(get_lock_dir()) / "abcd.lock")):
            clear_interrupted_builds()
    else:
        clear_interrupted_builds()
    assert cut_short.exists() == building
    assert whole.exists()
