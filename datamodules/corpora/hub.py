"""Ask the Hugging Face hub for a dataset's or model's commit and files, within seconds or not at all."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retain.datamodules.corpora.find import local_folder
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.redaction import redacted
from retain.sweeps.schema.corpora import Corpus

TIMEOUT_S = 10.0
COMMIT = re.compile(r"[0-9a-f]{40}")


class HubUnreachableError(MissingResourceError):
    """The hub does not answer: there is no internet access, or HF_HUB_OFFLINE is set."""


@dataclass(frozen=True)
class Repository:
    """One revision of a dataset or a model."""

    commit: str
    files: tuple[str, ...]


def is_on_hub(corpus: Corpus, folder: Path) -> bool:
    """Return whether a corpus is read from the hub: `hf` is an id, no format or local folder, and `files` is not given."""
    if corpus.hf is None or corpus.files is not None or "/" not in corpus.hf:
        return False
    return not (folder / corpus.hf).exists() and local_folder(corpus.hf, folder, "hf: ") is None


def look_up(kind: Literal["dataset", "model"], name: str, revision: str | None) -> Repository:
    """Return the commit that a revision points to now, and its files.

    Raises HubUnreachableError, or MissingResourceError if the repository or the revision is not found.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    try:
        info = ask(name, revision=revision, timeout=TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(redacted(str(error)).split())[:200]
        raise MissingResourceError(
            f"{name}: {kind} not found on the hub at revision {revision or 'main'}, or access denied "
            f"({type(error).__name__}: {reason}); correct id and revision, or log in with `hf auth login`"
        ) from error
    except Exception as error:  # the HTTP client raises classes of its own
        copy = "`files:` in the corpus" if kind == "dataset" else "a folder as `tokenizer.hf` or `model.hf`"
        raise HubUnreachableError(
            f"{name}: the hub does not answer ({type(error).__name__}: {' '.join(redacted(str(error)).split())[:200]}); use a "
            f"machine with internet access, or a local copy ({copy})"
        ) from error
    return Repository(str(info.sha), tuple(sorted(file.rfilename for file in info.siblings or ())))


def pinned(corpus: Corpus, folder: Path) -> Corpus:
    """Return a corpus with its revision replaced by the commit that the revision points to now.

    A corpus that is not read from the hub, or names a commit already, is returned unchanged. Raises HubUnreachableError,
    MissingResourceError.
    """
    if not is_on_hub(corpus, folder) or COMMIT.fullmatch(corpus.revision or ""):
        return corpus
    assert corpus.hf is not None
    return corpus.model_copy(update={"revision": look_up("dataset", corpus.hf, corpus.revision).commit})
