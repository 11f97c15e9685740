"""`retain board`: TensorBoard over a study's runs, each under a name that says its axes."""

import contextlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import NoReturn

from results.losses import study_folder
from results.store import Store
from sweeps.errors import MissingResourceError
from sweeps.tree import Tree, axes_label


def link_runs(tree: Tree, store: Store) -> Path:
    """A folder with a link to each run that has begun, named by its stage and axes; what left the study is unlinked."""
    folder = study_folder(store.root, tree.study) / "tensorboard"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {}
    for stage in tree.stages.values():
        if any(store.run(stage.key).folder.glob("events.*")):
            wanted[f"{stage.stage} {axes_label(stage.axes)}".replace("/", "_")[:200] + f" {stage.key[:6]}"] = stage.key
    for link in folder.iterdir():
        if link.name not in wanted:
            link.unlink(missing_ok=True)
    for name, key in wanted.items():
        with contextlib.suppress(FileExistsError):  # it is there, or another launcher was faster
            (folder / name).symlink_to(os.path.relpath(store.root / key, folder), target_is_directory=True)
    return folder


def serve(folder: Path, port: int) -> NoReturn:
    """Become TensorBoard on localhost, so that whatever stops this process stops it. Raises MissingResourceError."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingResourceError("tensorboard is not installed; install Retain from its lock file")
    if not folder.is_dir():
        raise MissingResourceError(f"{folder}: no such store; train something first, or name it with --store")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "localhost"]
    os.execv(sys.executable, [*command, "--port", str(port)])
