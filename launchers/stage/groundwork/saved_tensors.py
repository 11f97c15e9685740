"""The tensors that an attempt has computed: when it is stopped, with how much of the work they stand for; and at its end."""

import hashlib
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.log import log_line
from retain.sweeps.base.files import share

DONE, DIGEST = "sequences", "sha256"
"""What the metadata of the file has: over how many sequences the tensors are, and their digest."""


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], done: int) -> None:
    """Save tensors over the first `done` sequences; a process that is killed meanwhile leaves the file before."""
    path.parent.mkdir(exist_ok=True)
    own = {name: one.cpu() for name, one in tensors.items()}
    partial = path.with_name(f"{path.name}.partial")
    save_file(own, partial, {DONE: str(done), DIGEST: _digest(own)})
    partial.replace(path)


def saved_tensors(path: Path) -> tuple[int, dict[str, torch.Tensor]] | None:
    """The number of sequences of saved tensors, and the tensors; None if there are none, or they are damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata()
        if about[DIGEST] == _digest(tensors):
            return int(about[DONE]), tensors
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        pass
    log_line(f"{path} is damaged: the run starts again")
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
