"""What processes take from the user's surroundings."""

import sys

import pytest

from retain.sweeps.base.surroundings import library_imports


def test_libraries_are_not_imported_from_the_current_folder_of_an_interactive_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with library_imports():
        assert "" not in sys.path
    assert sys.path[0] == ""
