"""Searches in this process, without Ray: whatever trains the stages, the search is the same."""

import contextlib
import json
from pathlib import Path
from typing import Any

from retain.launchers.local.devices import Slot
from retain.launchers.local.launcher import train
from retain.launchers.search.budget import Budget
from retain.launchers.search.derived_studies import SearchedStudy, open_search
from retain.launchers.search.engine import Search
from retain.launchers.search.history import open_history
from retain.sweeps.tree.tree import Stage, Tree

THEORY = ("pretrain.lr=0.02", "posttrain.lr=0.02", "finetune.lr=0.02")
"""The theory study in a fifth of its steps."""


class GivenUpError(Exception):
    """The search gave up the stage at work."""


def block(**fields: Any) -> str:
    """An override that gives a study this search block."""
    return f"search={json.dumps(fields)}"


def searching(study: str, store: Path, *overrides: str, budget: Budget | None = None) -> Search:
    """A search at its beginning, or as its last start left it; its data prepared."""
    opened: SearchedStudy = open_search(study, overrides, store, lambda *_: None)
    opened.folder.mkdir(parents=True, exist_ok=True)
    history, _ = open_history(opened.folder / "search.json", opened.identity())
    return Search(opened, history, budget)


def finish(search: Search) -> None:
    """Train what a search hands out, one stage after the other."""
    while not search.finished():
        stage = search.next_stage()
        if stage is not None:
            train_one(search, stage)


def train_one(search: Search, stage: Stage) -> None:
    """Train a stage as an executor does: the search watches, and the stage is stopped once it is given up."""
    with contextlib.suppress(GivenUpError):
        train_alone(search, stage)
    search.ended(stage.key)


def train_alone(search: Search, stage: Stage) -> None:
    """Train a stage without telling the search of its end."""

    def watch(_: object) -> None:
        search.watched_at = 0.0  # these stages are short
        search.watch()
        if search.given_up(stage.key):
            raise GivenUpError

    alone = Stage(stage.key, stage.stage, None, "", stage.tokens, {})
    train(Tree("", {stage.key: alone}, [], False), search.store, [Slot({stage.stage: 1})], watch)
