"""From the start of a process to its first step, in parts: a SLURM job, a worker of `retain run`, a resumed job, a pack.

    python -m benchmarks.startup [--processes 3] [--compiled 2] [--write]

Each process is really started, and calls what a job or a worker calls; those calls are timed from outside. Time that one part
spends inside another counts for the inner one. A job is a cold interpreter, a worker is forked from a server that has imported
the libraries, and the next run of a pack is a later run of the same process. Compiled steps are `execution.compile: true`, with
an empty cache in the store and with a filled one. The kinds of process take turns. A first process of each kind, which does not
count, reads the files into memory.
"""

import argparse
import contextlib
import functools
import gc
import importlib
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import STARTED, Option, Page, log, markdown_table, run_benchmark, run_function
from retain.launchers.speed.folder import FOLDER

ATTEMPT, TRAINING = "retain.launchers.stage.attempt", "retain.launchers.stage.training.run"
IMPORTS = "imports: torch, lightning, transformers"
PARTS: dict[str, Sequence[tuple[str, str]]] = {
    "interpreter": (),
    "submitit and the job's own code": (),
    "fork": (),
    "reading the run and its parent": (),
    IMPORTS: (),
    "lease and attempt": ((ATTEMPT, "_take_lease"), (TRAINING, "_begin")),
    "checkpoint": ((TRAINING, "newest_checkpoint"), (TRAINING, "Resume._restore")),
    "tokeniser": ((TRAINING, "stored_tokenizer"),),
    "model": (
        (TRAINING, "_starting_model"),
        (TRAINING, "StageModule.__init__"),
        (TRAINING, "StageModule.configure_optimizers"),
    ),
    "data and held-out splits": (
        (TRAINING, "heldout_sequences"),
        (TRAINING, "StageData.__init__"),
        (TRAINING, "StageData.train_dataloader"),
    ),
    "Lightning": (),
    "whether this machine can compile": ((TRAINING, "choose_numerics"),),
    "first step": (),
}
"""The parts of a start, and the functions whose calls count for them."""
STEPS = 3
"""Steps of each run: the first one, and others to compare it with."""


@dataclass(frozen=True)
class Start:
    """Seconds of one start."""

    parts: dict[str, float]
    cpu: float
    """Of all threads, up to the end of the first step."""
    later_step: float


class TimedProcess:
    """A process that trains the first steps of runs, and knows what part of a start it spends its time on."""

    def __init__(self, began: float, part: str) -> None:
        self.marks = [(began, part)]
        self.cpu = 0.0
        self.steps: list[float] = []
        self.is_timed = False

    def enter(self, part: str) -> None:
        """The time from now on is spent on `part`."""
        self.marks.append((time.time(), part))

    def train(self, root: Path, key: str) -> Start:
        """Train a run's first steps as a job does."""
        from retain.launchers.jobs.job import check_needs
        from retain.launchers.stage.attempt import attempt_code
        from retain.launchers.stage.log import STOPPED
        from retain.launchers.stage.ranks import Ranks
        from retain.launchers.stage.signals import StopRequest
        from retain.results.store.runs import Store

        self.stop, self.steps = StopRequest(), []
        self.stop.install()
        store = Store(root)
        assert check_needs(store, store.run(key))[0] == "train"
        self.enter(IMPORTS)
        importlib.import_module(TRAINING)
        self.enter("Lightning")
        if not self.is_timed:
            self._time_calls()
        code, ending = attempt_code(store, key, Ranks(), self.stop)
        assert code == STOPPED, ending
        parts = Counter[str]()
        for (begin, part), (end, _) in pairwise(self.marks):
            parts[part] += end - begin  # type: ignore[assignment]
        return Start({part: parts[part] for part in PARTS}, self.cpu, min(self.steps[1:]))

    def next_run(self) -> None:
        """Forget the run before."""
        gc.collect()
        self.cpu = time.process_time()
        self.marks = [(time.time(), "reading the run and its parent")]

    def _time_calls(self) -> None:
        for part, functions in PARTS.items():
            for module, name in functions:
                self._replace(module, name, functools.partial(self._within, part))
        self._replace(TRAINING, "StageModule.training_step", self._step)
        self.is_timed = True

    def _replace(self, module: str, name: str, around: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        """Let every call of a function, or of a method, happen within a context."""
        *outer, last = name.split(".")
        owner: Any = functools.reduce(getattr, outer, importlib.import_module(module))
        function = getattr(owner, last)

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with around():
                return function(*arguments, **named)

        setattr(owner, last, timed)

    @contextlib.contextmanager
    def _within(self, part: str) -> Iterator[None]:
        outer = self.marks[-1][1]
        self.enter(part)
        try:
            yield
        finally:
            self.enter(outer)

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        """The first step ends the start; after a few more, the stage is asked to stop."""
        if not self.steps:
            self.enter("first step")
        begin = time.perf_counter()
        yield
        self.steps.append(time.perf_counter() - begin)
        if len(self.steps) == 1:
            self.enter("later steps")
            self.cpu = time.process_time() - self.cpu
        if len(self.steps) == STEPS:
            self.stop.signal = "SIGUSR2"


def as_job(root: str, key: str) -> Start:
    """Do what `python -m submitit.core._submit` does in a job."""
    process = TimedProcess(float(os.environ[STARTED]), "interpreter")
    process.enter("submitit and the job's own code")
    importlib.import_module("submitit.core.submission")
    importlib.import_module("retain.launchers.jobs.job")  # named by the pickle that submitit reads
    process.enter("reading the run and its parent")
    return process.train(Path(root), key)


def as_worker(root: Path, keys: Sequence[str], began: float, answer: Any) -> None:
    """Do what a process forked for `retain run` does with a pack; send a Start for each of its runs."""
    process, starts = TimedProcess(began, "fork"), []
    process.enter("reading the run and its parent")
    for key in keys:
        starts.append(process.train(root, key))
        process.next_run()
    answer.send(starts)


def measure(options: argparse.Namespace) -> Page:
    """Start each kind of process in turn."""
    from retain.launchers.checks.doctor import file_system

    os.environ["PYTHONWARNINGS"] = "ignore"
    root, keys = made_up_store(options.folder, 4 * (options.processes + 1), 4 * options.compiled)
    server = _fork_server()
    found: dict[str, list[Start]] = defaultdict(list)
    for turn in range(options.processes + 1):
        if turn == 1:  # the first of each has read the files into memory
            found.clear()
        cold = keys.pop(0)
        found["SLURM job"].append(start_job(root, cold))
        found["the same, resumed"].append(start_job(root, cold))
        first, *_, last = _start_worker(server, root, [keys.pop(0) for _ in range(3)])
        found["worker of retain run"].append(first)
        found["next of a pack"].append(last)
        log(f"{turn} of {options.processes}")
    for turn in range(options.compiled):
        shutil.rmtree(root / FOLDER, ignore_errors=True)
        found["SLURM job, compiling"].append(start_job(root, keys.pop(0)))
        found["the same, compiled before"].append(start_job(root, keys.pop(0)))
        found["next of a pack, compiled"].append(_start_worker(server, root, [keys.pop(0) for _ in range(2)])[-1])
        log(f"{turn + 1} of {options.compiled}, compiled")
    circumstances = [
        "the laptop model (4 layers of 128, vocabulary 2,048), a pretraining of 8 x 128 tokens in a step, one thread, fp32",
        f"medians of {options.processes} processes of each kind ({options.compiled} of compiled ones), in turn; the store on "
        f"{file_system(options.folder)}",
    ]

    def row(name: str, seconds: Callable[[Start], float], shown: str) -> list[str]:
        usual = [median(map(seconds, starts)) for starts in found.values()]
        return [name, *(shown.format(each) if each else "" for each in usual)]

    rows = [
        *(row(part, lambda start, part=part: start.parts[part], "{:.3f}") for part in PARTS),  # type: ignore[misc]
        row("**from its start to its first step done**", lambda start: sum(start.parts.values()), "**{:.2f}**"),
        row("processor seconds until then, all threads", lambda start: start.cpu, "{:.2f}"),
        row("a later step, for comparison", lambda start: start.later_step, "{:.3f}"),
    ]
    return Page(circumstances, [markdown_table(["seconds", *found], rows)])


def start_job(root: Path, key: str) -> Start:
    """Train the first steps of a run in a new process."""
    return Start(**run_function(as_job, root, key).result)


def _start_worker(server: Any, root: Path, keys: Sequence[str]) -> list[Start]:
    ours, theirs = server.Pipe(duplex=False)
    process = server.Process(target=as_worker, args=(root, keys, time.time(), theirs))
    process.start()
    theirs.close()
    starts: list[Start] = ours.recv()
    process.join()
    return starts


def _fork_server() -> Any:
    """The local launcher's server, once it has imported the libraries."""
    from retain.launchers.local.fork_server import fork_server, start

    server = fork_server([TRAINING])
    first = server.Process(target=os.getpid)
    start(first)
    first.join()
    return server


def made_up_store(folder: Path, runs: int, compiled: int = 0) -> tuple[Path, list[str]]:
    """A store with registered pretrainings that differ in their seed, and their keys; the last `compiled` ones compile.

    The study is `startup.yaml` in the folder.
    """
    from benchmarks.made_up import one_corpus_study, registered, write_words

    text = write_words(folder / "text.jsonl", documents=3000, words=100, vocabulary=2000)
    study = one_corpus_study(
        folder / "startup.yaml",
        text,
        {"tokens": 20_480, "lr": 1e-3, "batch": 8},
        heldout=0.012,
        model="laptop",
        tokenizer={"train": 2048},
        sequence_length=128,
        execution={"accelerator": "cpu"},
    )
    keys: list[str] = []
    for seeds, compile_steps in ((range(runs), "false"), (range(runs, runs + compiled), "true")):
        if seeds:
            overrides = (f"grid={{seed: {list(seeds)}}}", f"execution.compile={compile_steps}")
            opened = registered(study, overrides, folder / "store")
            keys += [key for key, stage in opened.tree.stages.items() if stage.parent is None]
    return folder / "store", keys


if __name__ == "__main__":
    run_benchmark(
        measure,
        "From the start of a process to its first step",
        ("torch", "lightning", "transformers", "submitit"),
        Option("processes", 3, 1, "processes of each kind", int),
        Option("compiled", 2, 1, "processes of each kind that compiles its steps", int),
    )
