"""What the Hugging Face hub says of a data set or a model: its commit and its files, within seconds or not at all."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.study import Corpus

TIMEOUT_S = 10.0
COMMIT = re.compile(r"[0-9a-f]{40}")


class HubSilentError(MissingResourceError):
    """The hub does not answer at all: no internet, or HF_HUB_OFFLINE is set."""


@dataclass(frozen=True)
class Repository:
    """One revision of a data set or a model."""

    commit: str
    files: tuple[str, ...]


def is_on_hub(corpus: Corpus, folder: Path) -> bool:
    """Whether a corpus is read from the hub: `hf` is an id, not a format or a local folder, and no files are named."""
    return corpus.hf is not None and corpus.files is None and "/" in corpus.hf and not (folder / corpus.hf).exists()


def look_up(kind: Literal["dataset", "model"], name: str, revision: str | None) -> Repository:
    """The commit that a revision stands for now. Raises HubSilentError, MissingResourceError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    try:
        info = ask(name, revision=revision, timeout=TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingResourceError(
            f"{name}: the hub has no such {kind}, or not at revision {revision or 'main'}, or not for you "
            f"({type(error).__name__}: {reason}); correct id and revision, or log in with `hf auth login`"
        ) from error
    except Exception as error:  # the client below raises its own kinds
        raise HubSilentError(
            f"{name}: the hub does not answer ({type(error).__name__}: {' '.join(str(error).split())[:200]}); run this where "
            "there is internet, or name a local copy (files: of a corpus; a folder as tokenizer.hf)"
        ) from error
    return Repository(str(info.sha), tuple(sorted(file.rfilename for file in info.siblings or ())))


def pinned(corpus: Corpus, folder: Path) -> Corpus:
    """The corpus at the commit that its revision stands for now; as it is where it is not read from the hub.

    Raises HubSilentError, MissingResourceError.
    """
    if not is_on_hub(corpus, folder) or COMMIT.fullmatch(corpus.revision or ""):
        return corpus
    assert corpus.hf is not None
    return corpus.model_copy(update={"revision": look_up("dataset", corpus.hf, corpus.revision).commit})
