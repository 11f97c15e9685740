"""Find a checkpoint, on the Hugging Face hub or in a local folder, and copy its files into a folder of the store."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.checkpoints.weights import INDEX, SINGLE, check_files, read_tensors, weight_files
from retain.datamodules.corpora.find import local_folder, shown
from retain.datamodules.corpora.hub import COMMIT, look_up
from retain.datamodules.corpora.tokenizer import JINJA, TOKENIZER_FILES
from retain.sweeps.base.documents import unreadable
from retain.sweeps.base.errors import MissingResourceError, RetainError, StudyError
from retain.sweeps.schema.families.table import FAMILIES, known_families
from retain.sweeps.schema.models import Model
from retain.sweeps.tree.keys import canonical

CONFIG, GENERATION = "config.json", "generation_config.json"
CHAT_TEMPLATE_FILES = (JINJA, "chat_template.json")
COMPANIONS = (
    *(TOKENIZER_FILES[1], "special_tokens_map.json", "added_tokens.json", *CHAT_TEMPLATE_FILES),
    *("vocab.json", "merges.txt", "tokenizer.model"),
)
"""The files beside tokenizer.json that belong to a tokeniser."""
SMALL = (CONFIG, GENERATION, INDEX, TOKENIZER_FILES[0], *COMPANIONS)
"""All files of a checkpoint that are taken, but for its weights."""
WITHOUT_EFFECT = (
    *("_name_or_path", "_attn_implementation", "architectures", "auto_map", "dtype", "torch_dtype"),
    *("transformers_version", "use_cache", "model_type"),
)
"""The fields of config.json that cannot change the weights. The model_type is the family."""


def local_checkpoint(model: Model, folder: Path) -> Path | None:
    """Return the local folder that `model.hf` names, relative to `folder`; None for an id on the hub.

    Raises MissingResourceError if only a path can be meant, and no folder is there; StudyError, also for one with a revision.
    """
    assert model.hf is not None
    return local_folder(model.hf, folder, "", model.revision)


def local_files(model: Model, place: Path) -> list[Path]:
    """Return the files that are taken from a local checkpoint, once its configuration and its weights' headers are read.

    Raises StudyError if the checkpoint cannot be used, MissingResourceError if a file may not be read.
    """
    try:
        read_config(place)
        weights = [] if model.weights == "random" else weight_files(place)
        check_files(place, weights)
        for name in weights:
            read_tensors(place / name)
        files = [place / name for name in (*SMALL, *weights) if (place / name).is_file()]
        for path in files:
            path.open("rb").close()
    except OSError as error:
        raise unreadable(Path(error.filename or place), error, "correct the path") from None
    return files


def copy_checkpoint(model: Model, folder: Path, to: Path) -> str | None:
    """Copy a checkpoint's files to a new folder. Returns the commit on the hub that was read; None for a local folder.

    With fresh weights, the files of the weights are left out. Raises StudyError if the checkpoint cannot be used, or
    MissingResourceError if it cannot be downloaded.
    """
    to.mkdir(parents=True)
    fresh = model.weights == "random"
    if (local := local_checkpoint(model, folder)) is not None:
        for path in local_files(model, local):
            shutil.copyfile(path, to / path.name)
        return None
    assert model.hf is not None
    try:
        commit = _commit(model)
    except MissingResourceError as error:
        raise type(error)(f"{error}; {shown(folder / model.hf)} is not a folder either") from error
    # The configuration first, so that nothing large is downloaded for a model that cannot be used.
    place = _download(model, commit, list(SMALL))
    weights: list[str] = []
    try:
        read_config(place)
        if not fresh:
            _download(model, commit, weight_files(place) if (place / INDEX).is_file() else [SINGLE])
            weights = weight_files(place)
            check_files(place, weights)
    except StudyError as error:
        # The user knows the checkpoint by its name, not by its place in a cache.
        raise StudyError(str(error).replace(str(place), model.hf)) from error
    for name in (*SMALL, *weights):
        if (place / name).is_file():
            _link(place / name, to / name)
    return commit


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the family of a checkpoint, and the fields of its config.json that can change a result. Raises StudyError."""
    if not (folder / CONFIG).is_file():
        adapter = (folder / "adapter_config.json").is_file()
        cure = "merge the adapter into its model and save that" if adapter else "name the folder of a model"
        raise StudyError(f"{folder} has no {CONFIG}; {cure}")
    try:
        fields = dict(json.loads((folder / CONFIG).read_bytes()))
        family = fields["model_type"]
        kept = {name: value for name, value in fields.items() if name not in WITHOUT_EFFECT}
        canonical(kept)
    except (ValueError, KeyError, TypeError):
        raise StudyError(f"{folder / CONFIG} is damaged or has no model_type; restore it") from None
    if family not in FAMILIES:
        raise StudyError(f"{folder}: unknown family {family!r}; the families are {known_families()}")
    if "quantization_config" in fields:
        raise StudyError(
            f"{folder}: the weights are quantised and cannot be trained; choose the unquantised checkpoint"
        )
    bidirectional = FAMILIES[family].causal_unless
    if bidirectional and fields.get(bidirectional):
        raise StudyError(f"{folder}: {bidirectional} is set, so it is not a causal model; choose another checkpoint")
    return family, kept


def _commit(model: Model) -> str:
    """The commit that the model's revision points to now."""
    assert model.hf is not None
    if COMMIT.fullmatch(model.revision or ""):
        return str(model.revision)
    return look_up("model", model.hf, model.revision).commit


def _download(model: Model, commit: str, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    assert model.hf is not None
    try:
        return Path(snapshot_download(model.hf, revision=commit, allow_patterns=names))
    except RetainError:
        raise
    except Exception as error:  # the HTTP client raises classes of its own
        raise MissingResourceError(
            f"{model.hf} cannot be downloaded at {commit} ({type(error).__name__}); check id and revision, or name a "
            "local folder"
        ) from error


def _link(path: Path, to: Path) -> None:
    """Link to a file of the hub's cache, which never changes a file, or copy it from another file system."""
    try:
        os.link(path.resolve(), to)
    except OSError:
        shutil.copyfile(path, to)
