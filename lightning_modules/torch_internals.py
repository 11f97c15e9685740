"""The private parts of torch that this project uses, all in one file, because a new release may move or remove them.

The lock pins torch, but pyproject.toml allows a range. With a release that lacks one of these parts, stages still train:

- `configure_compiler` raises UnsupportedTorchError. `why_not_compiled` reports it, and steps run eagerly: the loss and the
  gradients are the same up to floating-point differences, only slower.
- `clear_damaged_builds` does nothing. A library that was cut short by a crash then stays in torch's cache and may crash the
  processes that load it, until the cache is deleted.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path

import torch

MAX_VARIANTS = 64
"""The most variants that one layer's code is compiled to in a process, which may train several stages. Beyond it, torch
would run further shapes eagerly."""


class UnsupportedTorchError(RuntimeError):
    """This release of torch lacks a private part that compiling needs."""


def configure_compiler() -> None:
    """Set the process-wide options of torch.compile. Raises UnsupportedTorchError."""
    try:
        from torch._dynamo import config as dynamo
        from torch._inductor import config as inductor

        dynamo.recompile_limit = MAX_VARIANTS
        # With DDP, torch would divide a layer into pieces of about 25 MB of weights, and keep no compiled code of them for
        # later processes. Gradients travel while others are computed all the same: each layer has its own backward pass.
        dynamo.optimize_ddp = False
        # Torch decides by timing whether to pad a matrix product, so attempts that compile again might not be bit-identical.
        inductor.shape_padding = False
    except (ImportError, AttributeError) as error:
        raise UnsupportedTorchError(f"torch {torch.__version__} lacks an option of its compiler: {error}") from None


def clear_damaged_builds() -> None:
    """Remove incomplete libraries from torch's cache: every later process would load them and might crash.

    A library is incomplete if its linker was killed or the machine went down before the file was on disk.
    """
    try:
        from torch._inductor.codecache import get_lock_dir
        from torch._inductor.runtime.cache_dir_utils import cache_dir
        from torch.utils._filelock import FileLock
    except ImportError:
        return
    cache = Path(cache_dir())
    damaged = {left.with_name(left.name.removesuffix("_CxxBuild")) for left in cache.glob("*/*_CxxBuild")}
    damaged |= {library.with_suffix("") for library in cache.glob("*/*.so") if not _is_complete(library)}
    for build in damaged:
        # Whoever builds the library holds the lock; the lock of a process that died is free.
        lock = FileLock(str(Path(get_lock_dir()) / f"{build.name.split('.')[0]}.lock"), timeout=0)
        with contextlib.suppress(TimeoutError, OSError), lock:
            for file in build.parent.glob(f"{build.name}.*"):
                file.unlink()
            shutil.rmtree(build.with_name(f"{build.name}_CxxBuild"), ignore_errors=True)


def _is_complete(library: Path) -> bool:
    """Return whether a file is as long as its ELF header says. The section table, which ends the file, is written last."""
    try:
        with library.open("rb") as stream:
            header = stream.read(64)
            size = os.fstat(stream.fileno()).st_size
    except FileNotFoundError:  # another process has removed it
        return True
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return sys.platform != "linux"
    table = int.from_bytes(header[40:48], sys.byteorder)
    entry, entries = (int.from_bytes(header[at : at + 2], sys.byteorder) for at in (58, 60))
    return table + entry * entries <= size
