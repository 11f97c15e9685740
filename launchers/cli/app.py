"""The command line. Each verb imports what it needs when it is called, so that `retain --help` answers at once."""

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from retain.launchers.cli import maintain, search, show, train
from retain.launchers.cli.options import EXIT_CODES, INTERRUPTED
from retain.sweeps.base.errors import RetainError, StudyError
from retain.sweeps.base.surroundings import library_imports

RESUMABLE = ("run", "search", "probe")
"""Verbs that resume their work when they are interrupted and called again."""

app = typer.Typer(
    epilog=EXIT_CODES,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"retain {version('retain-lm')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What does a model still know after its next fine-tuning, and which upstream choices decide that?"""


for verb in (
    show.plan,
    train.data,
    train.run,
    train.submit,
    search.search,
    show.status,
    show.logs,
    train.cancel,
    train.retry,
    show.results,
    show.report,
    show.probe,
    show.board,
    show.why,
    maintain.export,
    maintain.verify,
    maintain.gc,
    maintain.pin,
    train.drill,
    maintain.doctor,
):
    app.command(epilog=EXIT_CODES)(verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; an error that the user can fix is one sentence on standard error."""
    typed = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        with library_imports():
            code = int(app(typed, prog_name="retain", standalone_mode=False) or 0)
    except RetainError as error:
        print(f"retain: {error}", file=sys.stderr)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        sys.stderr.close()
        return 0
    except typer.TyperException as error:  # an unknown verb or option, or an invalid value
        what = error.format_message().rstrip(".").replace("Value error, ", "")
        print(f"retain: {what}; see retain --help", file=sys.stderr)
        return StudyError.exit_code
    if code == INTERRUPTED and typed[0] in RESUMABLE:
        again = shlex.join(["retain", *typed])
        print(f"interrupted; finished stages and checkpoints are kept, and {again} resumes", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
