"""Studies on made-up text, and stores of any number of runs as training would have left them, made without training."""

import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from retain.datamodules.order.batches import recipe_digest
from retain.datamodules.order.digest import as_text
from retain.launchers.jobs.submissions import new_submission, write_submission
from retain.launchers.planning.opened_study import OpenedStudy, prepare_study
from retain.launchers.planning.register import register
from retain.results.store.lease import take_lease
from retain.results.store.runs import LOG, LOSSES, SPEC, STATE, Run, sha256_of
from retain.results.store.state import Progress
from retain.sweeps.base.documents import write_document
from retain.sweeps.schema.section import STAGE_KINDS
from retain.sweeps.tree.tree import Stage
from tests.results.runs import put_state, write_model
from tests.studies import tiny_study

SHAPES = {100: (1, 9, 10), 1_000: (10, 9, 10), 10_000: (10, 9, 110), 100_000: (10, 9, 1_110), 300_000: (15, 7, 2_856)}
"""By the number of runs: how many exposures, post-training rates of each and fine-tuning rates of each of these."""
MEMORY, IN_MEMORY = Path("/dev/shm"), 100_000
"""Where stores are made, and the most runs that are made there: the number of files in memory is limited."""
SEQUENCES = 16
"""Sequences of 32 tokens in each of the first two stages; fine-tuning has half as many."""
STATES = ("done",) * 14 + ("failed", "failed", "queued", "queued", "running", "planned")
"""The states of the fine-tunings, in turn; the stages above them are done."""


def one_corpus_study(path: Path, text: Path, stage: dict[str, Any], **fields: Any) -> Path:
    """Write a study whose three stages are alike and train on one text."""
    corpora = {"text": {"files": str(text), "heldout": fields.pop("heldout", 0.01)}}
    stages = {kind: {"corpus": "text", "lr": 1e-4, **stage} for kind in STAGE_KINDS}
    path.write_text(yaml.safe_dump({"study": path.stem, "corpora": corpora} | stages | fields))
    return path


def write_words(path: Path, documents: int, words: int, vocabulary: int) -> Path:
    """Write documents of so many made-up words each."""
    draw = random.Random(0)
    known = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(vocabulary)]
    with path.open("w") as stream:
        for number in range(documents):
            stream.write(json.dumps({"text": f"{number} " + " ".join(draw.choices(known, k=words))}) + "\n")
    return path


def registered(study: str | Path, overrides: Sequence[str], store: Path) -> OpenedStudy:
    """A study with its data prepared and its runs registered in a store."""
    opened = prepare_study(str(study), overrides, store)
    register(opened.tree, opened.file, opened.facts, opened.store)
    return opened


@dataclass(frozen=True)
class MadeStore:
    """A store, and its study."""

    study: Path
    root: Path


def made_store(runs: int, folder: Path) -> MadeStore:
    """A store of so many runs (of SHAPES) below `folder`.

    This process holds the leases of the running ones, so they are running until it ends. Remove stores only after the last
    measurement: ext4 is slow to reuse inodes that were freed in the last minutes.
    """
    study = tiny_study(folder / "study", study="scale", **study_fields(*SHAPES[runs]))
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() and runs <= IN_MEMORY else folder) as place,
        mock.patch("os.fsync"),
    ):
        # Made in memory, because a file that is replaced on a disk waits for the disk.
        root = Path(place) / "runs"
        _bring_into_states(registered(study, (), root))
        subprocess.run(["cp", "-r", str(root), str(folder / "runs")], check=True)
    return MadeStore(study, folder / "runs")


def study_fields(exposures: int, rates: int, finetunings: int) -> dict[str, Any]:
    """The overrides of the tiny study for a shape."""
    budgets = {"pretrain": SEQUENCES * 32, "posttrain": SEQUENCES * 32, "finetune": SEQUENCES * 16}
    return {
        **{f"{stage}.tokens": tokens for stage, tokens in budgets.items()},
        **{f"{stage}.warmup": 0 for stage in budgets},
        "posttrain.max_tokens": budgets["posttrain"],
        "grid": {
            "pretrain.exposure": [number / exposures for number in range(exposures)],
            "posttrain.lr": [1e-4 * number for number in range(1, rates + 1)],
            "finetune.lr": [1e-6 * number for number in range(1, finetunings + 1)],
        },
    }


def _bring_into_states(opened: OpenedStudy) -> None:
    """Bring each run into its state of STATES."""
    queued: dict[str | None, list[Run]] = {}
    digests: dict[str, str] = {}
    examples: dict[tuple[str, str], Run] = {}
    for number, stage in enumerate(opened.tree.stages.values()):
        run = opened.store.run(stage.key)
        state = STATES[number % len(STATES)] if stage.stage == "finetune" else "done"
        if state == "queued":
            queued.setdefault(stage.parent, []).append(run)
        elif state != "planned":
            losses = _losses(run, stage, opened, digests) if state == "done" else None
            if example := examples.get((stage.stage, state)):
                _leave_as(example, run, stage, losses)
            else:
                _train(run, stage, state, losses)
                if state != "running":  # whose leases cannot be copied
                    examples[stage.stage, state] = run
    for number, siblings in enumerate(queued.values()):
        submission = replace(new_submission([run.key for run in siblings]), job_id=str(1000 + number))
        write_submission(opened.store, submission)
        for run in siblings:
            run.queue(submission.token)


def _losses(run: Run, stage: Stage, opened: OpenedStudy, digests: dict[str, str]) -> dict[str, Any]:
    """The losses of a done run. digests: those of the data so far; runs that differ only in their rates share one."""
    recipe = json.loads(stage.recipe)
    data = json.dumps({**recipe, "lr": 0, "min_lr": 0})
    if data not in digests:
        digests[data] = as_text(recipe_digest(recipe, opened.store.root, recipe["steps"]))
    return {
        "splits": {role: {"loss": 2.0 + recipe["lr"], "tokens": 1000} for role in run.spec()["evaluation"]},
        "steps": recipe["steps"],
        "trained_tokens": stage.tokens,
        "token_digest": digests[data],
    }


def _train(run: Run, stage: Stage, state: str, losses: dict[str, Any] | None) -> None:
    """Leave what an attempt leaves behind: running, failed or done. losses: of a done run."""
    lease = take_lease(run.lease)
    assert lease is not None
    run.begin(os.getpid())
    run.report(Progress(stage.tokens // 2, stage.tokens, 2.5, 9000.0))
    _write_log(run, stage)
    (run.folder / f"events.out.tfevents.{int(time.time()):010d}.host.{os.getpid()}.0").write_bytes(bytes(2000))
    if state == "running":
        return
    if losses is None:
        run.fail("diverged: the loss is not finite", "diverged")
    else:
        run.report(Progress(stage.tokens, stage.tokens, 2.0, 9000.0))
        run.finish(write_model(run.folder / "model.partial", size=64), {LOSSES: losses})
    lease.release()


def _leave_as(example: Run, run: Run, stage: Stage, losses: dict[str, Any] | None) -> None:
    """Leave what the attempt at a run of the same stage and state has left, with losses of its own: a fifth of the work."""
    shutil.copytree(
        example.folder, run.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SPEC, STATE, LOSSES, LOG)
    )
    _write_log(run, stage)
    state = example.state()
    if losses is not None:
        write_document(run.folder / LOSSES, losses)
        state = replace(state, checksums=state.checksums | {LOSSES: sha256_of(run.folder / LOSSES)})
    put_state(run, state)


def _write_log(run: Run, stage: Stage) -> None:
    run.log.write_text(f"{stage.stage} {stage.key}: rank 0 of 1: begins\n")
