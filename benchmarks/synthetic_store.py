"""Stores of any number of runs in the store's own format, as training them would have left them, made without training."""

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from retain.datamodules.order.batches import recipe_digest
from retain.datamodules.order.digest import as_text
from retain.launchers.jobs.submissions import new_submission, write_submission
from retain.launchers.planning.opened_study import OpenedStudy, prepare_study
from retain.launchers.planning.register import register
from retain.results.store.lease import Lease, take_lease
from retain.results.store.runs import Run, Store
from retain.results.store.state import Progress
from retain.sweeps.tree.tree import Stage
from tests.results.runs import put_state, write_model
from tests.studies import tiny_study

SHAPES = {100: (1, 9, 10), 1_000: (10, 9, 10), 10_000: (10, 9, 110), 100_000: (10, 9, 1_110)}
"""For a number of runs, how many exposures, post-training rates of each and fine-tuning rates of each of these."""
MEMORY = Path("/dev/shm")
SEQUENCES = 16
"""Of 32 tokens, in each of the first two stages; fine-tuning has half as many."""
STATES = ("done",) * 14 + ("failed", "failed", "queued", "queued", "running", "planned")
"""Of the fine-tunings, in turn; the stages above them are done."""


@dataclass(frozen=True)
class MadeStore:
    """A store and the study that it belongs to."""

    study: Path
    root: Path
    runs: int
    seconds: float
    """That making it took."""


def made_store(runs: int, folder: Path) -> MadeStore:
    """A store of so many runs (of SHAPES) below `folder`.

    This process is the one that trains those that are running, so they stay so until it ends. Whoever measures removes
    stores only at the end: ext4 is slow to give out inodes that were freed in the last minutes.
    """
    begin = time.perf_counter()
    study = tiny_study(folder / "study", study="scale", **study_fields(*SHAPES[runs]))
    root = folder / "runs"
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else folder) as place, mock.patch("os.fsync"):
        # Made in memory: what replaces a file on a disk waits for the disk, which need not keep these through a crash.
        making = Path(place) / "runs"
        _fill(prepare_study(str(study), (), making))
        subprocess.run(["cp", "-r", str(making), str(root)], check=True)
    return MadeStore(study, root, runs, time.perf_counter() - begin)


def study_fields(exposures: int, rates: int, finetunings: int) -> dict[str, Any]:
    """The overrides of the tiny study for a shape."""
    tokens = SEQUENCES * 32
    return {
        "pretrain.tokens": tokens,
        "pretrain.warmup": 0,
        "posttrain.tokens": tokens,
        "posttrain.max_tokens": tokens,
        "posttrain.warmup": 0,
        "finetune.tokens": tokens // 2,
        "finetune.warmup": 0,
        "grid": {
            "pretrain.exposure": [number / exposures for number in range(exposures)],
            "posttrain.lr": [1e-4 * number for number in range(1, rates + 1)],
            "finetune.lr": [1e-6 * number for number in range(1, finetunings + 1)],
        },
    }


def _fill(opened: OpenedStudy) -> None:
    """Register all stages and bring each into its state."""
    register(opened.tree, opened.file, opened.facts, opened.store)
    made = _Maker(opened.store)
    queued: dict[str | None, list[str]] = {}
    for number, stage in enumerate(opened.tree.stages.values()):
        run = opened.store.run(stage.key)
        state = STATES[number % len(STATES)] if stage.stage == "finetune" else "done"
        if state == "queued":
            queued.setdefault(stage.parent, []).append(stage.key)
        elif state == "running":
            made.begin(run, stage)
        elif state != "planned":
            made.end(run, stage, state)
    for number, keys in enumerate(queued.values()):
        submission = replace(new_submission(keys), job_id=str(1000 + number))
        write_submission(opened.store, submission)
        for key in keys:
            run = opened.store.run(key)
            put_state(run, replace(run.state(), state="queued", submission=submission.token))


class _Maker:
    """Makes runs that are begun and ended; siblings that differ in their rates saw the same tokens."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.digests: dict[str, str] = {}

    def begin(self, run: Run, stage: Stage) -> Lease:
        lease = take_lease(run.lease)
        assert lease is not None
        state = run.begin(os.getpid())
        progress = Progress(stage.tokens // 2, stage.tokens, 2.5, 9000.0)
        put_state(run, replace(state, progress=progress, heartbeat=time.time()))
        run.log.write_text(f"{stage.stage} {stage.key}: rank 0 of 1: begins\n")
        (run.folder / f"events.out.tfevents.{int(time.time()):010d}.host.{os.getpid()}.0").write_bytes(bytes(2000))
        return lease

    def end(self, run: Run, stage: Stage, state: str) -> None:
        lease = self.begin(run, stage)
        if state == "failed":
            run.fail("diverged: the loss is not finite", "diverged")
        else:
            put_state(run, replace(run.state(), progress=Progress(stage.tokens, stage.tokens, 2.0, 9000.0)))
            run.finish(write_model(run.folder / "model.partial", size=64), self._losses(run, stage))
        lease.release()

    def _losses(self, run: Run, stage: Stage) -> dict[str, Any]:
        recipe = json.loads(stage.recipe)
        kind = json.dumps({**recipe, "lr": 0, "min_lr": 0})
        if kind not in self.digests:
            self.digests[kind] = as_text(recipe_digest(recipe, self.store.root, recipe["steps"]))
        roles = run.spec()["evaluation"]
        return {
            "splits": {role: {"loss": 2.0 + recipe["lr"], "tokens": 1000} for role in roles},
            "steps": recipe["steps"],
            "trained_tokens": stage.tokens,
            "token_digest": self.digests[kind],
        }
