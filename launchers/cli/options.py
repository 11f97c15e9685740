"""What several verbs share: arguments, options, exit codes, and how a document or a command is printed."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from retain.launchers.cli.completion import (
    complete_override,
    complete_run,
    complete_studies,
    complete_study,
    complete_study_or_run,
)
from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.files import is_file
from retain.sweeps.base.redaction import redacted

SOME_RUN_FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, the convention of shells."""
EXIT_CODES = (
    "Exit codes: 0 done; 1 a run failed, or a check found a problem; 2 invalid study, override or option; 3 the environment "
    "lacks something, such as a corpus, disk space or SLURM; 130 interrupted."
)

StudyName = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="A study file, or the name of one in sweeps/studies.", autocompletion=complete_study
    ),
]
MaybeStudy = Annotated[
    str | None,
    typer.Argument(metavar="STUDY", help="A study; without it, the whole store.", autocompletion=complete_study),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATH=VALUE",
        help="Overrides, for instance pretrain.exposure=0.5 or seed=[0,1,2].",
        autocompletion=complete_override,
    ),
]
Studies = Annotated[
    list[str],
    typer.Argument(
        metavar="STUDY|PATH=VALUE",
        help="One study, or several taken together; overrides apply to all of them.",
        autocompletion=complete_studies,
    ),
]
RunKey = Annotated[
    str, typer.Argument(metavar="RUN", help="A stage key, or its unique beginning.", autocompletion=complete_run)
]
StudyOrRun = Annotated[
    str,
    typer.Argument(
        metavar="STUDY|RUN",
        help="A study, or the key of a run: that run and all runs below it.",
        autocompletion=complete_study_or_run,
    ),
]


def _store_path(typed: str) -> Path:
    from retain.sweeps.base.files import user_path

    path = user_path(typed, "--store")
    try:
        str(path).encode()
    except UnicodeEncodeError:  # TensorBoard can neither write nor read there
        raise StudyError(
            f"--store {path}: this locale cannot read all bytes of the path; set LC_ALL=C.UTF-8, or rename the folder"
        ) from None
    return path


def _named_path(option: str) -> Callable[[str], Path]:
    def parse(typed: str) -> Path:
        from retain.sweeps.base.files import user_path

        return user_path(typed, option)

    return parse


CsvPath = Annotated[
    Path | None,
    typer.Option(
        "--csv",
        help="Also write the rows to this file, pipe or device; - is standard output.",
        parser=_named_path("--csv"),
        metavar="<path>",
    ),
]
ToPath = Annotated[
    Path | None,
    typer.Option(
        "--to",
        help="The folder to create; by default the run's key in the working directory.",
        parser=_named_path("--to"),
        metavar="<path>",
    ),
]
StorePath = Annotated[
    Path,
    typer.Option("--store", envvar="RETAIN_STORE", help="The store of runs.", parser=_store_path, metavar="<path>"),
]
SiteName = Annotated[
    str | None,
    typer.Option("--site", help="A profile in sites.yaml; by default, the one that matches this machine, if any."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
UntilDecided = Annotated[
    Literal["decided"] | None,
    typer.Option(
        "--until", help="decided: add seeds in blocks until every verdict is decided, or --most seeds are trained."
    ),
]
MostSeeds = Annotated[int | None, typer.Option("--most", help="The largest number of seeds with --until decided.")]
BlockOfSeeds = Annotated[
    int | None, typer.Option("--block", help="The number of seeds to add at a time with --until decided; 2 by default.")
]
RUNS = Path("runs")

Document = TypeVar("Document")


def command(verb: str, name: str | None, overrides: Sequence[str] | None, store: Path) -> str:
    """A command that runs as it is printed, but for passwords: with the same study or run, overrides and store."""
    return f"retain {verb} {command_arguments(name, overrides, store)}".rstrip()


def command_arguments(name: str | None, overrides: Sequence[str] | None, store: Path) -> str:
    """The arguments of such a command; the default store is left out."""
    default = _store_path(os.environ.get("RETAIN_STORE") or str(RUNS))
    place = [] if store == default else ["--store", str(store)]
    return shlex.join([*([name] if name else []), *map(redacted, overrides or ()), *place])


def split_studies(words: Sequence[str], verb: str) -> tuple[list[str], list[str]]:
    """The names of studies and the overrides among the arguments of a verb. Raises StudyError if no study is named."""
    # A path may contain a `=`; an override is never the path of a file.
    overrides = [word for word in words if "=" in word and not is_file(word)]
    names = [word for word in words if word not in overrides]
    if not names:
        raise StudyError(f"{verb}: name at least one study; overrides come after it")
    return names, overrides


def check_site(site: str | None, launcher: str) -> None:
    """Raise StudyError for a site where nothing is submitted to SLURM."""
    if site is not None:
        raise StudyError(f"--site {site}: a site's profile is for jobs, and --launcher {launcher} has none; omit it")


def at_most_one(options: Mapping[str, object]) -> None:
    """Raise StudyError if more than one of these options is given: a verb would follow one, and ignore the others."""
    given = [name for name, value in options.items() if value]
    if len(given) > 1:
        raise StudyError(f"{given[0]}: cannot be combined with {given[1]}; omit one of the two")


def show(document: Document, as_json: bool, print_text: Callable[[Document], None]) -> None:
    """Print a document: for scripts as JSON, for people with `print_text`."""
    from retain.launchers.console import print_json

    (print_json if as_json else print_text)(document)
