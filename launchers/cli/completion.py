"""What the shell completes after a verb: studies, keys of runs, paths of fields. Quick to import, as shells wait for it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

SHORT = 8
"""Letters of a completed key."""
MOST = 200
"""The most keys that are completed at once."""


def complete_study(incomplete: str) -> list[str]:
    """Studies of Retain, study files, and folders that may hold one."""
    shipped = Path(__file__).parents[2] / "sweeps" / "studies"
    if not shipped.is_dir():  # pragma: no cover - not in an installation that is complete
        return list(_study_files(incomplete))
    names = sorted(path.stem for path in shipped.glob("*.yaml") if path.stem.startswith(incomplete))
    return [*_study_files(incomplete), *names]


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Keys of the runs of the store."""
    store = context.params.get("store") or os.environ.get("RETAIN_STORE") or "runs"
    try:
        names = sorted(os.listdir(store))
    except OSError:
        return []
    keys = [name for name in names if len(name) == 20 and not set(name) - set("0123456789abcdef")]
    return [key[: max(SHORT, len(incomplete))] for key in keys if key.startswith(incomplete)][:MOST]


def complete_study_or_run(context: typer.Context, incomplete: str) -> list[str]:
    """Studies, and keys of the runs of the store."""
    return [*complete_study(incomplete), *complete_run(context, incomplete)]


def complete_override(incomplete: str) -> list[tuple[str, str]]:
    """Paths of fields with `=`, and what they mean; the values of a field that has few."""
    from retain.sweeps.reference.paths import all_paths

    path, separator, _ = incomplete.partition("=")
    known = all_paths()
    if separator:
        words = known[path].type_text.replace("true or false", "`true` or `false`") if path in known else ""
        values = [word.strip("`") for word in words.split(" or ") if word.startswith("`")]
        return [(f"{path}={value}", "") for value in values if f"{path}={value}".startswith(incomplete)]
    return [
        (f"{field.path}=", _first_sentence(field.meaning))
        for field in known.values()
        if field.path.startswith(incomplete) and ".NAME" not in field.path and not field.sections
    ]


def complete_studies(incomplete: str) -> list[tuple[str, str]]:
    """Studies, and after them overrides."""
    overrides = complete_override(incomplete) if incomplete else []
    return [*((study, "") for study in complete_study(incomplete)), *overrides]


def complete_field(incomplete: str) -> list[tuple[str, str]]:
    """Paths of fields and sections, and what they mean."""
    from retain.sweeps.reference.paths import all_paths

    return [
        (path, _first_sentence(field.meaning)) for path, field in all_paths().items() if path.startswith(incomplete)
    ]


def _study_files(incomplete: str) -> Iterator[str]:
    folder, beginning = os.path.split(incomplete)
    try:
        entries: Sequence[os.DirEntry[str]] = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(beginning) and (beginning.startswith(".") or not entry.name.startswith(".")):
            path = os.path.join(folder, entry.name)
            if entry.is_dir():
                yield f"{path}/"
            elif entry.name.endswith((".yaml", ".yml")):
                yield path


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".").replace("`", "")
