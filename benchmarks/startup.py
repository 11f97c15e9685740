"""From a process's start to its first step, in parts: a SLURM job's, one of `retain run`, a resumed one, the next of a pack.

    python -m benchmarks.startup [--processes 3] [--compiled 2] [--write]

Each process is really started and calls what a job or a worker calls, around which a clock is put from outside; time spent
in one part inside another counts for the inner one. A job is a cold interpreter, a worker is forked from a server that has
imported the libraries, the next of a pack is a later run of one process. Compiled steps are `execution.compile: true`, with
an empty cache in the store and with a filled one. The kinds take turns; the files are in the system's memory, as one process
of each kind goes first that does not count.
"""

import argparse
import contextlib
import functools
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import circumstances, file_system, markdown_table, write_results
from retain.launchers.stage.environment import FOLDER

PACKAGES = ("torch", "lightning", "transformers", "submitit")
PARTS = (
    "interpreter",
    "submitit and the job's own code",
    "fork",
    "reading the run and its parent",
    "imports: torch, lightning, transformers",
    "lease and attempt",
    "resumable state",
    "tokeniser",
    "model",
    "data and held-out splits",
    "Lightning",
    "whether this machine can compile",
    "first step",
)
STEPS = 3
"""Of each process: the first, and others to compare it with."""


class Clock:
    """Seconds by part since a moment; what is not told of a part belongs to the one around it."""

    def __init__(self, start: float, first: str) -> None:
        self.parts: dict[str, float] = {}
        self.current, self.since = first, start

    def enter(self, part: str) -> None:
        """What follows is spent on `part`."""
        now = time.time()
        self.parts[self.current] = self.parts.get(self.current, 0.0) + now - self.since
        self.current, self.since = part, now

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        around = self.current
        self.enter(part)
        try:
            yield
        finally:
            self.enter(around)


class Watched:
    """A process that trains the first steps of runs, with a clock around what a stage consists of."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.steps: list[float] = []
        self.stop: Any = None
        self.ready = False
        self.processor = 0.0
        """Seconds of it up to the first step's end."""

    def train(self, root: Path, key: str) -> dict[str, Any]:
        """Train a run's first steps as a job does; the seconds of each part, and of a later step."""
        from retain.launchers.jobs.job import check_needs
        from retain.launchers.stage.attempt import STOPPED, attempt_code
        from retain.launchers.stage.ranks import Ranks
        from retain.launchers.stage.signals import StopRequest
        from retain.results.store.runs import Store

        self.stop, self.steps = StopRequest(), []
        self.processor = time.process_time() if self.ready else 0.0
        self.stop.install()
        store = Store(root)
        output = os.dup(1)
        os.dup2(2, 1)
        assert check_needs(store, store.run(key))[0] == "train"
        self.clock.enter("imports: torch, lightning, transformers")
        from retain.launchers.stage.training import run

        self.clock.enter("Lightning")
        if not self.ready:
            self._put_clock(run)
        code, ending = attempt_code(store, key, Ranks(), self.stop)
        os.dup2(output, 1)
        assert code == STOPPED, ending
        parts = {part: self.clock.parts.get(part, 0.0) for part in PARTS}
        return {"parts": parts, "processor": self.processor, "later step": min(self.steps[1:])}

    def _put_clock(self, stage: Any) -> None:
        self._watch(stage, "_take_patiently", "lease and attempt")
        self._watch(stage, "settle_form", "whether this machine can compile")
        self._watch(stage, "_begin", "lease and attempt")
        self._watch(stage, "newest_state", "resumable state")
        self._watch(stage.Resume, "_restore", "resumable state")
        self._watch(stage, "load_tokenizer", "tokeniser")
        self._watch(stage, "_starting_model", "model")
        self._watch(stage.StageModule, "__init__", "model")
        self._watch(stage.StageModule, "configure_optimizers", "model")
        self._watch(stage, "heldout_sequences", "data and held-out splits")
        self._watch(stage.StageData, "__init__", "data and held-out splits")
        self._watch(stage.StageData, "train_dataloader", "data and held-out splits")
        stage.StageModule.training_step = self._timed_step(stage.StageModule.training_step)
        self.ready = True

    def _watch(self, owner: Any, name: str, part: str) -> None:
        """Book the calls of a function, or of a method, on a part."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.clock.within(part):
                return function(*arguments, **named)

        setattr(owner, name, timed)

    def _timed_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The first step ends what is measured; after a few the stage is told to stop."""

        @functools.wraps(step)
        def timed(*arguments: Any, **named: Any) -> Any:
            if not self.steps:
                self.clock.enter("first step")
            begin = time.perf_counter()
            done = step(*arguments, **named)
            self.steps.append(time.perf_counter() - begin)
            if len(self.steps) == 1:
                self.clock.enter("later")
                self.processor = time.process_time() - self.processor
            if len(self.steps) == STEPS:
                self.stop.signal = "SIGUSR2"
            return done

        return timed


def as_job(root: Path, key: str, start: float) -> dict[str, Any]:
    """What `python -m submitit.core._submit` does in a job, from the interpreter's first line on."""
    clock = Clock(start, "interpreter")
    clock.enter("submitit and the job's own code")
    import submitit.core.submission  # noqa: F401

    import retain.launchers.jobs.job  # noqa: F401  # named by the pickle that submitit reads

    clock.enter("reading the run and its parent")
    return Watched(clock).train(root, key)


def as_worker(root: Path, keys: Sequence[str], start: float, answer: Any) -> None:
    """What a process forked for `retain run` does with a pack; for each of its runs, what `Watched.train` tells."""
    watched = Watched(Clock(start, "fork"))
    told = []
    for key in keys:
        watched.clock.enter("reading the run and its parent")
        told.append(watched.train(root, key))
        watched.clock = Clock(time.time(), "between two of a pack")
        gc.collect()
    answer.send(told)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parsed(arguments)
    if options.job:
        root, key, start = options.job
        print(json.dumps(as_job(Path(root), key, float(start))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        head = circumstances(
            PACKAGES,
            "the laptop model (4 layers of 128, vocabulary 2,048), a pretraining of 8 x 128 tokens a step, one thread, fp32",
            f"medians of {options.processes} processes of each kind ({options.compiled} of compiled ones), in turn; "
            f"the store on {file_system(Path(folder))}",
        )
        text = "\n\n".join(["# From a process's start to its first step", head, table(measure(options, Path(folder)))])
    print(text)
    if options.write:
        print(write_results("startup", text + "\n"), file=sys.stderr)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """By kind of process, what each told."""
    os.environ["PYTHONWARNINGS"] = "ignore"
    root, keys = made_up_store(folder, 4 * (options.processes + 1), 4 * options.compiled)
    server = _fork_server()
    found: dict[str, list[dict[str, Any]]] = {}

    def add(kind: str, told: dict[str, Any]) -> None:
        found.setdefault(kind, []).append(told)

    for turn in range(options.processes + 1):
        if turn == 1:  # the first of each has read the files into memory
            found.clear()
        add("SLURM job", job(root, cold := keys.pop(0)))
        add("the same, resumed", job(root, cold))
        first, *_, last = _worker(server, root, [keys.pop(0) for _ in range(3)])
        add("worker of retain run", first)
        add("next of a pack", last)
        print(f"{turn} of {options.processes}", file=sys.stderr)
    for turn in range(options.compiled):
        shutil.rmtree(root / FOLDER, ignore_errors=True)
        add("SLURM job, compiling", job(root, keys.pop(0)))
        add("the same, compiled before", job(root, keys.pop(0)))
        add("next of a pack, compiled", _worker(server, root, [keys.pop(0) for _ in range(2)])[-1])
        print(f"{turn + 1} of {options.compiled}, compiled", file=sys.stderr)
    return found


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A row a part, a column a kind of process, in seconds."""
    totals = {kind: median(sum(one["parts"].values()) for one in told) for kind, told in found.items()}
    rows = []
    for part in PARTS:
        seconds = {kind: median(one["parts"][part] for one in told) for kind, told in found.items()}
        rows.append([part, *(f"{second:.3f}" if second else "" for second in seconds.values())])
    rows.append(["**from its start to its first step done**", *(f"**{total:.2f}**" for total in totals.values())])
    processor = (median(one["processor"] for one in told) for told in found.values())
    rows.append(["processor seconds of it, all threads", *(f"{seconds:.2f}" for seconds in processor)])
    later = (median(one["later step"] for one in told) for told in found.values())
    rows.append(["a later step, for comparison", *(f"{seconds:.3f}" for seconds in later)])
    return markdown_table(["seconds", *found], rows)


def job(root: Path, key: str) -> dict[str, Any]:
    """What `Watched.train` tells of a run that a new process trains."""
    # As submitit starts it, up to the module's name.
    command = [sys.executable, "-u", "-m", "benchmarks.startup", "--job", str(root), key, repr(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _worker(server: Any, root: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    ours, theirs = server.Pipe(duplex=False)
    process = server.Process(target=as_worker, args=(root, keys, time.time(), theirs))
    process.start()
    theirs.close()
    told: list[dict[str, Any]] = ours.recv()
    process.join()
    return told


def _fork_server() -> Any:
    """The local launcher's, its imports done."""
    from retain.launchers.kinds import TRAINING
    from retain.launchers.local.launcher import _fork_server

    server = _fork_server([TRAINING.module])
    first = server.Process(target=os.getpid)
    first.start()
    first.join()
    return server


def made_up_store(folder: Path, runs: int, compiled: int = 0) -> tuple[Path, list[str]]:
    """A store with registered pretrainings over made-up words, which differ in their seed; their keys, the compiled last.

    The study is `startup.yaml` in the folder.
    """
    import yaml

    from retain.launchers.planning.opened_study import prepare_study
    from retain.launchers.planning.register import register

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(2000)]
    with (folder / "text.jsonl").open("w") as stream:
        for number in range(3000):
            stream.write(json.dumps({"text": f"{number} " + " ".join(draw.choices(words, k=100))}) + "\n")
    stage = {"corpus": "text", "tokens": 20_480, "lr": 1e-3, "batch": 8}
    fields = {
        "study": "startup",
        "model": "laptop",
        "tokenizer": {"train": 2048},
        "sequence_length": 128,
        "corpora": {"text": {"files": "text.jsonl", "heldout": 0.012}},
        "pretrain": stage,
        "posttrain": stage,
        "finetune": stage,
        "execution": {"accelerator": "cpu"},
    }
    (folder / "startup.yaml").write_text(yaml.safe_dump(fields))
    keys: list[str] = []
    for seeds, compile_steps in ((range(runs), "false"), (range(runs, runs + compiled), "true")):
        if not seeds:
            continue
        overrides = (f"grid={{seed: {list(seeds)}}}", f"execution.compile={compile_steps}")
        opened = prepare_study(str(folder / "startup.yaml"), overrides, folder / "store")
        register(opened.tree, opened.file, opened.facts, opened.store)
        keys += [key for key, stage in opened.tree.stages.items() if stage.parent is None]
    return folder / "store", keys


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--processes", type=int, default=3, help="of each kind")
    parser.add_argument("--compiled", type=int, default=2, help="of each kind that compiles its steps")
    parser.add_argument("--folder", type=Path, help="where the store goes, for a moment; the system's temporary folder")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/startup.md")
    parser.add_argument("--job", nargs=3, metavar=("STORE", "KEY", "START"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
