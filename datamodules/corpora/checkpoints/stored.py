"""A checkpoint in the store: a Hugging Face folder that nothing changes, and what planning needs to know of it.

<store>/checkpoints/<fingerprint>/   config.json, weights, tokeniser, and checkpoint.json with its facts
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.checkpoints.files import SMALL, copy_checkpoint, read_config
from retain.datamodules.corpora.checkpoints.model import inspect
from retain.datamodules.corpora.checkpoints.weights import check_files, tensor_digests, weight_files
from retain.datamodules.corpora.prepared import CURE
from retain.datamodules.corpora.tokenizer import load_tokenizer
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError, RetainError, StudyError
from retain.sweeps.schema.families.counts import ModelCounts
from retain.sweeps.schema.models import Model
from retain.sweeps.tree.data_facts import CheckpointFacts
from retain.sweeps.tree.keys import canonical

MANIFEST = "checkpoint.json"


@dataclass(frozen=True)
class _Manifest:
    """The content of checkpoint.json."""

    fingerprint: str
    family: str
    config: Mapping[str, Any]
    tensors: str
    """The digest of all tensors; of none with fresh weights."""
    vocabulary: int
    context: int
    tokenizer: str | None
    counts: ModelCounts
    sizes: Mapping[str, int]
    """The bytes of every file."""
    sha256: Mapping[str, str]
    """The digests of all files but the weights, which the digest of the tensors covers."""


def build_checkpoint(model: Model, folder: Path, building: Path) -> tuple[CheckpointFacts, str | None]:
    """Copy a checkpoint to a new folder, check it, and write its manifest. Returns its facts and its commit on the hub.

    folder: where relative paths start. Raises StudyError, MissingResourceError.
    """
    commit = copy_checkpoint(model, folder, building)
    try:
        family, config = read_config(building)
        fresh = model.weights == "random"
        tensors = _tensors(building, [] if fresh else weight_files(building))
        vocabulary, context, counts = inspect(building, family, fresh)
    except StudyError as error:
        # The user knows the checkpoint by its name, not by the copy.
        raise StudyError(str(error).replace(str(building), str(model.hf))) from error
    try:
        tokenizer = load_tokenizer(building).fingerprint
    except StudyError:
        tokenizer = None
    files = sorted(path for path in building.iterdir() if path.is_file())
    manifest = _Manifest(
        fingerprint=_fingerprint(family, config, tensors),
        family=family,
        config=config,
        tensors=tensors,
        vocabulary=vocabulary,
        context=context,
        tokenizer=tokenizer,
        counts=counts,
        sizes={path.name: path.stat().st_size for path in files},
        sha256={path.name: _sha256(path) for path in files if path.name in SMALL},
    )
    write_document(building / MANIFEST, asdict(manifest))
    return _facts(manifest), commit


def open_checkpoint(folder: Path) -> CheckpointFacts:
    """Return the facts of a checkpoint in the store. Raises DamageError if a file is missing or has another size."""
    manifest = _read(folder)
    for name, size in manifest.sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise DamageError(f"{path} is damaged or missing; {CURE}")
    return _facts(manifest)


def checkpoint_folder(store: Path, fingerprint: str) -> Path:
    """Return the folder of a checkpoint in the store. Raises DamageError if the store lacks it, or it is damaged."""
    folder = store / "checkpoints" / fingerprint
    open_checkpoint(folder)
    return folder


def checkpoint_problem(folder: Path) -> str | None:
    """Read a checkpoint of the store whole, and return what is damaged and what to do; None if it is what its folder names."""
    cure = f"delete the folder, and {CURE}"
    try:
        manifest = _read(folder)
        open_checkpoint(folder)
        weights = [name for name in manifest.sizes if name.endswith(".safetensors")]
        if _tensors(folder, weights) != manifest.tensors:
            return f"a tensor is damaged; {cure}"
        if damaged := [name for name, digest in manifest.sha256.items() if _sha256(folder / name) != digest]:
            return f"{damaged[0]} is damaged; {cure}"
    except StudyError as error:
        return f"{str(error).rpartition(';')[0]}; {cure}"
    except RetainError as error:
        return str(error)
    except OSError as error:
        return f"the checkpoint cannot be read ({error}); {cure}"
    return None if manifest.fingerprint == folder.name else f"it is not the checkpoint that its folder names; {cure}"


def _read(folder: Path) -> _Manifest:
    try:
        manifest = read_document(folder / MANIFEST, _Manifest, CURE)
    except FileNotFoundError:
        absent = f"checkpoint {folder.name} not found in {folder.parents[1]}"
        raise DamageError(
            f"{folder / MANIFEST} is missing; {CURE}" if folder.is_dir() else f"{absent}; {CURE}"
        ) from None
    if _fingerprint(manifest.family, manifest.config, manifest.tensors) != manifest.fingerprint:
        raise DamageError(f"{folder / MANIFEST} is damaged (its fingerprint does not match); {CURE}")
    return manifest


def _facts(manifest: _Manifest) -> CheckpointFacts:
    return CheckpointFacts(
        manifest.fingerprint,
        manifest.family,
        manifest.config,
        manifest.vocabulary,
        manifest.context,
        manifest.tokenizer,
        manifest.counts,
    )


def _tensors(folder: Path, names: list[str]) -> str:
    check_files(folder, names)
    digests = [list(one) for one in tensor_digests(folder, names)]
    return hashlib.sha256(canonical(digests).encode()).hexdigest()


def _fingerprint(family: str, config: Mapping[str, Any], tensors: str) -> str:
    content = {"family": family, "config": config, "tensors": tensors}
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:20]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
