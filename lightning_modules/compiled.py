"""torch.compile of the training step: each decoder layer, the norm after them, and the loss with its gradient.

A layer is compiled once and its code serves all layers, so that compiling takes as long for 30 layers as for 4. The hooks
around a layer, which gather its weights where ranks hold them in parts, stay outside; those for dropout lie inside of it.
"""

import contextlib
import os
import shutil
import sys
from functools import cache
from pathlib import Path

import torch
from torch._inductor.codecache import get_lock_dir
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.utils._filelock import FileLock
from transformers import LlamaForCausalLM

from retain.lightning_modules.objective import LossAndGradient, loss_and_gradient

MOST_VARIANTS = 64
"""Of one layer's code in a process that trains several stages; beyond it, torch would go on without compiling."""


def compile_layers(model: LlamaForCausalLM) -> None:
    """Compile the forward and backward pass of every layer, and of the norm after them, when they are first used, for the
    shapes they are used with."""
    torch._dynamo.config.recompile_limit = MOST_VARIANTS
    # Which products it pays for is timed, so an attempt whose code is compiled anew might end in other bits.
    torch._inductor.config.shape_padding = False
    clear_damaged_builds()
    for part in (*model.model.layers, model.model.norm):
        part.forward = torch.compile(part.forward, dynamic=False)


@cache
def compiled_loss_and_gradient() -> LossAndGradient:
    return torch.compile(loss_and_gradient, dynamic=False)


def why_not_compiled(device: torch.device) -> str | None:
    """What keeps this machine from compiling for a device, in a few words; None where it can."""
    clear_damaged_builds()
    try:
        torch.compile(lambda numbers: numbers.sin() + 1, dynamic=False)(torch.zeros(64, device=device))
    except Exception as error:  # whatever a toolchain that is missing or broken leads to
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return (lines or [type(error).__name__])[0]
    return None


def clear_damaged_builds() -> None:
    """Remove libraries from torch's cache whose linking was killed, or whose end was lost when a machine went down: every
    later process would load what is there of them, and might die of it."""
    cache = Path(cache_dir())
    damaged = {left.with_name(left.name.removesuffix("_CxxBuild")) for left in cache.glob("*/*_CxxBuild")}
    damaged |= {library.with_suffix("") for library in cache.glob("*/*.so") if not _is_whole(library)}
    for build in damaged:
        # The lock is held while somebody builds; whoever dies lets it go.
        lock = FileLock(str(Path(get_lock_dir()) / f"{build.name.split('.')[0]}.lock"), timeout=0)
        with contextlib.suppress(TimeoutError, OSError), lock:
            for file in build.parent.glob(f"{build.name}.*"):
                file.unlink()
            shutil.rmtree(build.with_name(f"{build.name}_CxxBuild"), ignore_errors=True)


def _is_whole(library: Path) -> bool:
    """Whether a file is as long as its ELF header says: the table of sections, which it points at, is written last."""
    try:
        with library.open("rb") as stream:
            header = stream.read(64)
            size = os.fstat(stream.fileno()).st_size
    except FileNotFoundError:  # somebody has just removed it
        return True
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return sys.platform != "linux"
    table = int.from_bytes(header[40:48], sys.byteorder)
    entry, entries = (int.from_bytes(header[at : at + 2], sys.byteorder) for at in (58, 60))
    return table + entry * entries <= size
