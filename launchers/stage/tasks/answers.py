"""The answers of a model to the requests of a task: an attempt saves them on the way, and the next one takes them over."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import torch

from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.log import log_line
from retain.launchers.stage.saving.pause import Pause
from retain.launchers.stage.training.choose_numerics import arithmetic_of
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError

FILE = "answers.json"
"""The file of saved answers in checkpoint/."""
SEED = 1234
"""The harness's own seed of torch's generator; that of the n-th batch is n more."""


class _Batch(TypedDict):
    """The answers to a batch of requests."""

    answers: str
    """As JSON."""
    tokens: int
    """The number of tokens of the requests."""
    digest: str
    """SHA-256 of the number of the batch, its requests and the answers."""


class _Saved(TypedDict):
    """The content of answers.json."""

    arithmetic: str
    """How the answers were computed; see `choose_numerics.arithmetic_of`."""
    batches: list[_Batch]
    """The first batches of the task, in order."""


class Answers:
    """The answers to the batches of a task, whose requests come in the same order in every attempt."""

    def __init__(self, context: AttemptContext) -> None:
        self.path = context.run.checkpoint / FILE
        self.arithmetic = arithmetic_of(context)
        self.saved = _saved_batches(self.path, self.arithmetic)
        self.batches: list[_Batch] = []
        self.tokens = 0
        """The tokens of the batches so far."""
        self.pause = Pause(context, self.saved_tokens)

    @property
    def saved_tokens(self) -> int:
        """The tokens of the batches that earlier attempts have saved."""
        return sum(batch["tokens"] for batch in self.saved)

    def of(self, requests: object, tokens: int, compute: Callable[[], Any]) -> list[Any]:
        """The answers to the next batch: as they were saved, or else computed, after a pause in which the attempt may stop.

        requests: what the model is asked, of plain values. tokens: how many these are. Sampled answers are a function of the
        batch's number.
        """
        number = len(self.batches)
        batch = self.saved[number] if number < len(self.saved) else None
        if batch is None or batch["digest"] != _digest(number, requests, batch["answers"]):
            self.pause(self.tokens, self._save)
            torch.manual_seed(SEED + number)
            answers = json.dumps(compute())
            batch = _Batch(answers=answers, tokens=tokens, digest=_digest(number, requests, answers))
        self.batches.append(batch)
        self.tokens += batch["tokens"]
        found: list[Any] = json.loads(batch["answers"])
        return found

    def _save(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        write_document(self.path, {"arithmetic": self.arithmetic, "batches": self.batches})


def _saved_batches(path: Path, arithmetic: str) -> list[_Batch]:
    """The batches in a file of saved answers; none if there is no file, it is damaged, or they were computed otherwise."""
    try:
        saved = read_document(path, _Saved, "the run starts again")
    except FileNotFoundError:
        return []
    except DamageError as error:
        log_line(str(error))
        return []
    if saved["arithmetic"] == arithmetic:
        return saved["batches"]
    log_line(f"{path} was not computed in {arithmetic}: the run starts again")
    return []


def _digest(number: int, requests: object, answers: str) -> str:
    return hashlib.sha256(repr((number, requests, answers)).encode(errors="backslashreplace")).hexdigest()
