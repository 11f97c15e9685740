"""Every kind of file of a store, damaged in every way: no verb ends in a traceback or hides it, and `verify` names it."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launchers.checks.damages import (
    DAMAGES,
    FOLDER_OF_A_RUN,
    KINDS,
    NOBODY,
    Ended,
    Kind,
    Place,
    damages_of,
    in_child,
    is_harmless,
    judged,
    make_place,
    run_verb,
    table_of,
)
from tests.launchers.checks.model_damages import MODEL_KINDS, make_model_place

PLACES = {"studies": (make_place, KINDS), "models": (make_model_place, MODEL_KINDS)}
"""The stores that are damaged, each with the kinds of files that are in it."""
ALL_KINDS = [(place, name) for place, (_, kinds) in PLACES.items() for name in kinds]

WRITERS = ("run", "search", "cancel", "retry", "pin", "data")
"""Verbs that change a store; each is tried on a copy of its own."""
SLOW = ("report tiny", "run linear", "search linear")
"""These draw figures or train if nothing is damaged, for a second and more: not every damage is tried on them."""
FOR_SLOW = ("missing", "truncated", "newer format", "folder")
QUICK = ("missing", "truncated", "other type")
"""The damages that are tried on every kind of file in the fast tests; the slow tests try the others."""
LEAST = 300
"""The fewest pairs of a damaged file and a verb."""


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="retain-shared-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def places() -> Iterator[dict[str, Place]]:
    """The stores to damage, by name."""
    with open_folder() as folder:
        yield {name: make(folder / name) for name, (make, _) in PLACES.items()}


@pytest.fixture(scope="module")
def place(places: dict[str, Place]) -> Place:
    return places["studies"]


@pytest.fixture(scope="module", autouse=True)
def without_slurm() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        yield


@pytest.fixture(scope="module")
def all_sound(places: dict[str, Place], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Ended]]:
    """How each verb ends on each sound store."""
    found: dict[str, dict[str, Ended]] = {name: {} for name in PLACES}
    for name, (_, kinds) in PLACES.items():
        verbs = {verb for kind in (*kinds.values(), FOLDER_OF_A_RUN) for verb in (*kind.verbs, verify_of(kind))}
        for verb in sorted(verbs):
            copy = places[name].copy(tmp_path_factory.mktemp("sound") / "runs")
            found[name][verb] = run_verb(verb, copy)
    return found


@pytest.fixture(scope="module")
def sound(all_sound: dict[str, dict[str, Ended]]) -> dict[str, Ended]:
    return all_sound["studies"]


def verify_of(kind: Kind) -> str:
    """Verifying the tiny study checks tokens, which takes a while."""
    return "verify" if any("tiny" in verb for verb in kind.verbs) else "verify linear"


def outcomes(kind: Kind, damage: str, place: Place, sound: dict[str, Ended], folder: Path) -> Iterator[tuple[str, str]]:
    """Each verb with how it ended on this damage."""
    copy = place.copy(folder / "runs")
    path = kind.file(copy)
    DAMAGES[damage](path)
    for verb in (verify_of(kind), *kind.verbs):
        if verb in SLOW and (is_harmless(kind, damage) or damage not in FOR_SLOW):
            continue
        ended = run_verb(verb, copy)
        how = judged(ended, sound[verb], path, copy)
        yield verb, "another answer, as it may be" if how.startswith("!hidden") and is_harmless(kind, damage) else how
        shutil.rmtree(folder / "runs-exported", ignore_errors=True)
        if verb.split()[0] in WRITERS:
            shutil.rmtree(copy.store)
            copy = place.copy(folder / "runs")
            DAMAGES[damage](path)
    shutil.rmtree(copy.store)


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["quick", "others"])
@pytest.mark.parametrize(("where", "name"), ALL_KINDS)
def test_a_damaged_file_is_named_and_never_a_traceback_or_hidden(
    where: str,
    name: str,
    quick: bool,
    places: dict[str, Place],
    all_sound: dict[str, dict[str, Ended]],
    tmp_path: Path,
) -> None:
    kind, rows = PLACES[where][1][name], []
    for damage in (damage for damage in damages_of(kind) if (damage in QUICK) == quick):
        ended = outcomes(kind, damage, places[where], all_sound[where], tmp_path)
        rows += [(name, damage, verb, how) for verb, how in ended]
    wrong = [row for row in rows if row[3].startswith("!")]
    unnamed = [
        row for row in rows if row[2].startswith("verify") and row[3] != "named (1)" and not is_harmless(kind, row[1])
    ]
    if "RETAIN_DAMAGE_TABLE" in os.environ:
        with open(os.environ["RETAIN_DAMAGE_TABLE"], "a", encoding="utf-8") as stream:
            stream.write(table_of(rows) + "\n")
    assert wrong == []
    assert unnamed == []


@pytest.mark.parametrize("damage", ["named pipe", "dangling link"])
def test_something_else_in_the_place_of_a_run_is_named(
    damage: str, place: Place, sound: dict[str, Ended], tmp_path: Path
) -> None:
    found = dict(outcomes(FOLDER_OF_A_RUN, damage, place, sound, tmp_path))
    assert [how for how in found.values() if how.startswith("!")] == []
    assert found["verify"] == "named (1)"


@pytest.fixture
def shared(place: Place) -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def readable(place: Place) -> Place:
    """The same store, with every file readable by every user."""
    for path in place.store.rglob("*"):
        path.chmod(path.stat().st_mode | 0o444)
    return place


@pytest.mark.slow
def test_a_file_that_may_not_be_read_is_named(
    places: dict[str, Place], all_sound: dict[str, dict[str, Ended]], shared: Path
) -> None:
    copies = {}
    for number, (where, name) in enumerate(ALL_KINDS):
        copies[where, name] = readable(places[where].copy(shared / str(number)))
        PLACES[where][1][name].file(copies[where, name]).chmod(0)
    unchanging = (*WRITERS, "results", "report", "export", "gc")

    def work() -> list[tuple[str, str, str, str]]:
        rows = []
        for (where, name), copy in copies.items():
            kind = PLACES[where][1][name]
            path = kind.file(copy)
            for verb in (verify_of(kind), *(verb for verb in kind.verbs if verb.split()[0] not in unchanging)):
                how = judged(run_verb(verb, copy), all_sound[where][verb], path, copy)
                rows.append((name, "unreadable", verb, how))
        return rows

    rows = in_child(work, NOBODY)
    assert [row for row in rows if row[3].startswith("!")] == []
    assert [row for row in rows if row[2].startswith("verify") and row[3] != "named (1)"] == []


def test_the_folder_of_a_colleague_that_may_not_be_read_is_named_and_hides_nothing_else(
    place: Place, sound: dict[str, Ended], shared: Path
) -> None:
    copy = readable(place.copy(shared / "runs"))
    plan = run_verb("plan linear", copy).printed
    folder = copy.store / place.trained
    folder.chmod(0)
    ended = in_child(
        lambda: {verb: vars(run_verb(verb, copy)) for verb in ("status", "verify", "gc", "plan linear", "why linear")},
        NOBODY,
    )
    for verb in ("status", "verify", "gc", "plan linear"):
        assert "Traceback" not in ended[verb]["complained"]
        assert place.trained in ended[verb]["printed"] + ended[verb]["complained"], ended[verb]
    assert {run["key"]: run["state"] for run in json.loads(ended["status"]["printed"])["runs"]} | {
        place.trained: "done"
    } == {run["key"]: run["state"] for run in json.loads(sound["status"].printed)["runs"]}
    assert ended["plan linear"]["printed"] == plan


def test_no_verb_ends_in_a_traceback_on_a_store_that_may_only_be_read(place: Place, shared: Path) -> None:
    copy = readable(place.copy(shared / "runs"))
    verbs = (
        "status",
        "results tiny",
        "plan tiny",
        "verify",
        "gc",
        "logs",
        "pin",
        "cancel tiny",
        "retry",
        "data",
        "export",
    )
    ended = in_child(lambda: {verb: vars(run_verb(verb, copy)) for verb in verbs}, NOBODY)
    assert {verb: one for verb, one in ended.items() if one["code"] not in (0, 3)} == {}
    assert [one for one in ended.values() if one["code"] == 3 and len(one["complained"].splitlines()) != 1] == []


def test_enough_is_damaged() -> None:
    kinds = [PLACES[where][1][name] for where, name in ALL_KINDS]
    pairs = {(kind.file, damage, verb) for kind in kinds for damage in damages_of(kind) for verb in kind.verbs}
    assert len(pairs) >= LEAST
