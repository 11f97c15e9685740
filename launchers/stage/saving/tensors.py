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
"""What the metadata of the file has: over how many sequences the tensors are, how they were computed, and a digest."""


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], done: int, arithmetic: str) -> None:
    """Save tensors over the first `done` sequences; a process that is killed meanwhile leaves the file before."""
    path.parent.mkdir(exist_ok=True)
    own = {name: one.cpu() for name, one in tensors.items()}
    partial = path.with_name(f"{path.name}.partial")
    save_file(own, partial, {DONE: str(done), ARITHMETIC: arithmetic, DIGEST: _digest(own, done)})
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
        done = int(about[DONE])
        intact = about[DIGEST] == _digest(tensors, done)
        if intact and about[ARITHMETIC] == arithmetic:
            return done, tensors
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


def _digest(tensors: dict[str, torch.Tensor], done: int) -> str:
    """SHA-256 of tensors, with their names, types and shapes, over the first `done` sequences, in hexadecimal."""
    found = hashlib.sha256(str(done).encode())
    for name, one in sorted(tensors.items()):
        found.update(f" {name} {one.dtype} {tuple(one.shape)} ".encode())
        found.update(one.contiguous().numpy().data)
    return found.hexdigest()
