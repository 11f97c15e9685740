"""The tensors that an attempt has computed: on the way, with how much of the work they stand for; and at its end."""

import hashlib
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.log import log_line
from retain.sweeps.base.files import share, sync_path

DONE, ARITHMETIC, DIGEST = "sequences", "arithmetic", "sha256"
"""What the metadata of the file has: over how many sequences the tensors are, how they were computed, and their digest."""


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], done: int, arithmetic: str) -> None:
    """Save tensors over the first `done` sequences; a process that is killed meanwhile leaves the file before."""
    path.parent.mkdir(exist_ok=True)
    own = {name: one.cpu() for name, one in tensors.items()}
    partial = path.with_name(f"{path.name}.partial")
    save_file(own, partial, {DONE: str(done), ARITHMETIC: arithmetic, DIGEST: _digest(own)})
    share(partial)
    sync_path(partial)
    partial.replace(path)


def saved_tensors(path: Path, arithmetic: str) -> tuple[int, dict[str, torch.Tensor]] | None:
    """The number of sequences of saved tensors, and the tensors; None if there are none that can be continued.

    arithmetic: see `choose_numerics.arithmetic_of`. Tensors that are damaged, or were computed otherwise, do not count.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata()
        intact = about[DIGEST] == _digest(tensors)
        if intact and about[ARITHMETIC] == arithmetic:
            return int(about[DONE]), tensors
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        intact = False
    log_line(f"{path} {f'was not computed in {arithmetic}' if intact else 'is damaged'}: the run starts again")
    return None


def publish_tensors(context: AttemptContext, tensors: dict[str, torch.Tensor], name: str) -> None:
    """Finish a run with a file of tensors in place of a model. name: that of the file."""
    partial = context.run.folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file(tensors, partial / name)
    share(partial / name)
    context.finish(partial, {})


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the names and values of tensors, in hexadecimal."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().numpy().data)
    return found.hexdigest()
