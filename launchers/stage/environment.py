"""The environment of training processes: offline libraries, and a compile cache in the store that processes share.

If the store has no private folder for this user (`launchers.speed.folder`), or the user has set TORCHINDUCTOR_CACHE_DIR, torch
keeps its own cache on this machine.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from retain.launchers.speed.folder import made_private_folder

OFFLINE = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Set before the libraries are imported: training needs no network, and its logs no progress bars."""
DEFAULT = "torchinductor_"
"""The beginning of the name of torch's own cache folder, which torch puts into the environment when it is imported."""


def compile_cache(store: Path) -> Mapping[str, str]:
    """The environment variables that make torch keep compiled code in the store; empty if it must not do so.

    Set them before anything is compiled.
    """
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if chosen is not None and not Path(chosen).name.startswith(DEFAULT):
        return {}
    place = made_private_folder(store)
    return (
        {"TORCHINDUCTOR_CACHE_DIR": str(place / "inductor"), "TRITON_CACHE_DIR": str(place / "triton")} if place else {}
    )
