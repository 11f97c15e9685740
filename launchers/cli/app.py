"""The command line. Each verb imports what it needs when it is called, so that `retain --help` answers at once."""

import atexit
import functools
import gc
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from retain.launchers.cli import maintain, search, show, start, train
from retain.launchers.cli.options import EXIT_CODES, INTERRUPTED
from retain.launchers.cli.streams import safe_streams
from retain.sweeps.base.errors import NO_ROOM, MissingResourceError, RetainError, StudyError, os_cure, os_reason
from retain.sweeps.base.files import is_file
from retain.sweeps.base.redaction import redacted
from retain.sweeps.base.surroundings import library_imports

RESUMABLE = ("run", "evaluate", "search", "probe")
"""Verbs that resume their work when they are interrupted and called again."""
CHANGING = ("cancel", "retry")
"""Verbs that change one run after another."""
TRY = "check that it is there, and that you may read and write it"
HELP = {"--help", "-h", "--version"}
ALLOCATIONS = 500_000
"""Objects that are made before the garbage collector looks for cycles. Its default of 700 takes a tenth of the time of a verb
that reads many runs, and finds nothing; 100,000 still take a twentieth of it at 100,000 runs."""
NO_PLUGINS = {"PYDANTIC_DISABLE_PLUGINS": "__all__"}
"""Otherwise pydantic looks for plugins in a file of every installed package; one could change how studies are read."""

# Its last passes, at exit, look through all that a verb has made: a tenth of a second where 10,000 runs were read.
atexit.register(gc.freeze)

app = typer.Typer(
    epilog=EXIT_CODES,
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
    start.init,
    start.fields,
    show.plan,
    show.power,
    train.data,
    show.overlap,
    train.run,
    train.evaluate,
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


@functools.cache
def _command() -> Callable[..., Any]:
    """The command that typer makes of all verbs; whoever calls `main` again and again makes it once."""
    return typer.main.get_command(app)


def _check_words(words: Sequence[str]) -> None:
    """Raise StudyError for an empty word, such as an unset variable in quotes, and for spaces around a word."""
    for before, word in zip(["retain", *words], words, strict=False):
        if not word.strip() or (word.startswith("--") and word.endswith("=")):
            after = word if word.strip() else f"{before} {word!r}"
            raise StudyError(f"{after}: an empty word; write a value, or leave it out")
        if word != word.strip() and not is_file(word):
            raise StudyError(f"{word!r}: spaces around the word; remove them")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; an error that the user can fix is one sentence on standard error."""
    gc.set_threshold(ALLOCATIONS)
    typed = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with safe_streams() as output:
        code = _main(typed)
        sys.stdout.flush()
        # Whoever has closed a pipe, as `head` does, wants no more; any other loss is an error, but the work is done.
        if output is not None and output.error is not None and not isinstance(output.error, BrokenPipeError):
            print(f"retain: standard output cannot be written ({os_reason(output.error)})", file=sys.stderr)
            code = code or MissingResourceError.exit_code
    return code


def _main(typed: Sequence[str]) -> int:
    try:
        _check_words(typed)
        if not HELP & set(typed):
            _check_surroundings()
        with library_imports(NO_PLUGINS):
            code = int(_command()(typed, prog_name="retain", standalone_mode=False) or 0)
    except RetainError as error:
        print(f"retain: {error}", file=sys.stderr)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt) as interrupt:
        # typer takes it for a Ctrl-D at a prompt, and there are no prompts.
        if isinstance(interrupt.__cause__, EOFError):
            raise interrupt.__cause__ from None
        code = INTERRUPTED
    except OSError as error:
        file = error.filename2 or error.filename  # the second of a rename or a link is the one that is made
        place = f"{file}: " if file else ""
        cure = "free space and try again" if error.errno in NO_ROOM else os_cure(error, TRY)
        print(f"retain: {redacted(place)}{os_reason(error)}; {cure}", file=sys.stderr)
        return MissingResourceError.exit_code
    except typer.TyperException as error:  # an unknown verb or option, or an invalid value
        what = error.format_message().rstrip(".").replace("Value error, ", "")
        context = getattr(error, "ctx", None)
        print(f"retain: {redacted(what)}; see {context.command_path if context else 'retain'} --help", file=sys.stderr)
        return StudyError.exit_code
    if code == INTERRUPTED:
        again = redacted(shlex.join(["retain", *typed]))
        if typed[0] in RESUMABLE:
            print(f"interrupted; finished stages and checkpoints are kept, and {again} resumes", file=sys.stderr)
        elif typed[0] in CHANGING:
            print(f"interrupted; some runs may be changed already, and {again} does the rest", file=sys.stderr)
    return code


def _check_surroundings() -> None:
    """Check that libraries can be imported here. Raises MissingResourceError."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise MissingResourceError("the working directory has been deleted; change to another folder") from None
    if sys.flags.optimize > 1:
        raise MissingResourceError(
            "PYTHONOPTIMIZE=2 and python -OO remove the docstrings that transformers reads; unset PYTHONOPTIMIZE"
        )


if __name__ == "__main__":
    sys.exit(main())
