"""What several verbs share: arguments, options, exit codes, and how a document or a command is printed."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

SOME_RUN_FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, the convention of shells."""
EXIT_CODES = (
    "Exit codes: 0 done; 1 a run failed, or a check found a problem; 2 invalid study, override or option; 3 the environment "
    "lacks something, such as a corpus, disk space or SLURM; 130 interrupted."
)

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of one in sweeps/studies.")]
MaybeStudy = Annotated[str | None, typer.Argument(metavar="STUDY", help="A study; without it, the whole store.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="PATH=VALUE", help="Overrides, for instance pretrain.exposure=0.5 or seed=[0,1,2]."),
]
RunKey = Annotated[str, typer.Argument(metavar="RUN", help="A stage key, or its unique beginning.")]
StudyOrRun = Annotated[
    str, typer.Argument(metavar="STUDY|RUN", help="A study, or the key of a run: that run and all runs below it.")
]
StorePath = Annotated[Path, typer.Option("--store", envvar="RETAIN_STORE", help="The store of runs.")]
SiteName = Annotated[
    str | None,
    typer.Option("--site", help="A profile in sites.yaml; without it, the one that matches this machine, if any."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
RUNS = Path("runs")

Document = TypeVar("Document")


def command(verb: str, name: str | None, overrides: Sequence[str] | None, store: Path) -> str:
    """A command that runs as it is printed: with the same study or run, overrides and store."""
    return f"retain {verb} {command_arguments(name, overrides, store)}".rstrip()


def command_arguments(name: str | None, overrides: Sequence[str] | None, store: Path) -> str:
    """The arguments of such a command; the default store is left out."""
    default = Path(os.environ.get("RETAIN_STORE") or RUNS)
    place = [] if store == default else ["--store", str(store)]
    return shlex.join([*([name] if name else []), *(overrides or ()), *place])


def say_provisional(provisional: bool, study: str | None, overrides: Sequence[str] | None, store: Path) -> None:
    """Say on standard error that no stage counts as trained before the data of a study is prepared."""
    if provisional:
        prepare = command("data", study, overrides, store)
        print(
            f"the data is not prepared, so the keys are provisional and no stage counts as trained: {prepare}",
            file=sys.stderr,
        )


def show(document: Document, as_json: bool, print_text: Callable[[Document], None]) -> None:
    """Print a document: for scripts as JSON, for people with `print_text`."""
    from retain.launchers.console import print_json

    (print_json if as_json else print_text)(document)
