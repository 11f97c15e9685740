import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import distributed
from torch._dynamo.utils import counters
from torch._inductor.codecache import get_lock_dir
from torch.nn.parallel import DistributedDataParallel
from torch.utils._filelock import FileLock

from retain.lightning_modules.compiled import compile_layers, why_not_compiled
from retain.lightning_modules.torch_internals import UnsupportedTorchError, clear_damaged_builds
from tests.lightning_modules.tiny_models import random_sequences, small_model


def a_complete_library() -> Path:
    return Path(torch.__file__).parent / "lib" / "libc10.so"


@pytest.mark.parametrize("building", [False, True], ids=["its builder died", "it is being built"])
def test_a_library_whose_linker_was_killed_is_removed_from_the_cache_unless_it_is_being_built(
    building: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "ab"
    (folder / "abcd.main_CxxBuild").mkdir(parents=True)
    incomplete, complete = folder / "abcd.main.so", folder / "efgh.main.so"
    incomplete.touch()
    shutil.copy(a_complete_library(), complete)
    if building:
        with FileLock(str(Path(get_lock_dir()) / "abcd.lock")):
            clear_damaged_builds()
    else:
        clear_damaged_builds()
    assert incomplete.exists() == building
    assert complete.exists()


def test_a_library_truncated_by_a_machine_failure_is_removed_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "ab"
    folder.mkdir()
    complete, truncated, empty = (folder / f"{name}.main.so" for name in ("complete", "truncated", "empty"))
    shutil.copy(a_complete_library(), complete)
    truncated.write_bytes(complete.read_bytes()[:4096])
    empty.touch()
    clear_damaged_builds()
    assert [path for path in (complete, truncated, empty) if path.exists()] == [complete]


def test_a_torch_without_the_compiler_options_is_reported_so_that_steps_run_eagerly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch._dynamo, "config", object())
    reason = why_not_compiled(torch.device("cpu"))
    assert reason is not None
    assert reason.startswith(f"torch {torch.__version__} lacks an option of its compiler: ")
    with pytest.raises(UnsupportedTorchError, match="lacks an option of its compiler"):
        compile_layers(small_model())


def test_a_torch_without_the_cache_internals_keeps_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch.utils._filelock", None)
    damaged = tmp_path / "ab" / "damaged.main.so"
    damaged.parent.mkdir()
    damaged.touch()
    clear_damaged_builds()
    assert damaged.exists()


@pytest.mark.slow
def test_a_layer_is_compiled_as_one_piece_also_where_ranks_share_gradients() -> None:
    torch.compiler.reset()  # other tests compile the same layers
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = small_model(hidden=256, mlp=1024)  # more than the first megabyte, after which torch would cut
        compile_layers(model)
        counters["aot_autograd"].clear()
        DistributedDataParallel(model)(random_sequences(2)).logits.sum().backward()
        assert counters["aot_autograd"]["total"] == 2  # all layers, and the final norm
    finally:
        distributed.destroy_process_group()
