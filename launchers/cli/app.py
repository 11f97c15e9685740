"""The command line. Each verb imports what it needs when it is called, so that `retain --help` answers at once."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from retain.launchers.cli import maintain, predict, report, search, show, train
from retain.launchers.cli.options import INTERRUPTED
from retain.sweeps.base.errors import RetainError, StudyError

app = typer.Typer(
    epilog="Exit codes: 0 done, 1 some run failed, 2 wrong use or wrong study, 3 the environment lacks something.",
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
    report.report,
    predict.probe,
    show.board,
    show.why,
    maintain.export,
    maintain.verify,
    maintain.gc,
    maintain.pin,
    train.drill,
    maintain.doctor,
):
    app.command()(verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; what a user can cure is one sentence on standard error."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        return int(app(list(words) or ["--help"], standalone_mode=False) or 0)
    except RetainError as error:
        print(f"retain: {error}", file=sys.stderr)
        return error.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        return 0
    except typer.TyperException as error:  # wrong use of a verb
        print(f"retain: {error.format_message().rstrip('.')}; see retain --help", file=sys.stderr)
        return StudyError.exit_code


if __name__ == "__main__":
    sys.exit(main())
