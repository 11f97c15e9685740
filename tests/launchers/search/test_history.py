"""search.json as it may be found: of this version, of another one, or damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.search.history import History, Point, open_history, point_counts
from retain.results.store.runs import Store
from retain.sweeps.base.errors import MissingResourceError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A history of one point."""
    path = tmp_path / "studies" / "s" / "search.json"
    path.parent.mkdir(parents=True)
    point = Point(0, {"finetune.lr": 0.01}, "random")
    History(path, "me", [point], rungs={"k": {"10": {"held-out loss": 2.0}}}, states={"p0": "done"}).save()
    return path


def test_a_history_is_read_as_it_was_saved_and_ignores_fields_of_later_versions(path: Path) -> None:
    saved = open_history(path, "me")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"later": 1}))
    assert open_history(path, "me") == saved
    assert saved[0].points == [Point(0, {"finetune.lr": 0.01}, "random")]
    assert saved[0].rungs == {"k": {"10": {"held-out loss": 2.0}}}
    assert point_counts(Store(path.parents[2]), "s") == {"done": 1}


@pytest.mark.parametrize(
    "damage", ["", "null", "[]", "{}", '{"identity"', {"points": None}, {"points": [{}]}, {"rungs": {"k": 1}}]
)
def test_a_damaged_history_is_one_sentence_with_the_file_and_the_cure(path: Path, damage: Any) -> None:
    changed = damage if isinstance(damage, str) else json.dumps(json.loads(path.read_text()) | damage)
    path.write_text(changed)
    for action in (lambda: open_history(path, "me"), lambda: point_counts(Store(path.parents[2]), "s")):
        with pytest.raises(MissingResourceError) as caught:
            action()
        assert str(caught.value).startswith(str(path))
        assert "delete this file and search again" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert path.read_text() == changed


def test_a_folder_in_place_of_a_history_is_named(path: Path) -> None:
    path.unlink()
    path.mkdir()
    with pytest.raises(MissingResourceError, match="is not a file"):
        open_history(path, "me")
