"""The help: every verb in one readable line, and all that a caller needs in the help of each verb."""

import re
import subprocess
import sys

import pytest

from retain.launchers.cli.app import app, main

VERBS = [
    "plan",
    "power",
    "data",
    "overlap",
    "run",
    "evaluate",
    "submit",
    "search",
    "status",
    "logs",
    "cancel",
    "retry",
    "results",
    "report",
    "probe",
    "board",
    "why",
    "export",
    "verify",
    "gc",
    "pin",
    "drill",
    "doctor",
]
WITHOUT_STORE = ["init", "fields"]
"""The verbs that read no store."""
MOST_LETTERS = 60


def help_of(capsys: pytest.CaptureFixture[str], *verb: str) -> str:
    assert main([*verb, "--help"]) == 0
    return capsys.readouterr().out


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    script = "import sys; from retain.launchers.cli.app import main; main(['--help']); print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    help_text, modules = printed.rsplit("\n", 2)[0], printed.split()
    assert all(verb in help_text for verb in VERBS)
    for heavy in ("torch", "lightning", "transformers", "datasets", "pandas", "matplotlib", "rich", "pydantic", "yaml"):
        assert heavy not in modules


def test_the_overview_has_one_whole_sentence_for_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    overview = help_of(capsys)
    assert [command.callback.__name__ for command in app.registered_commands if command.callback] == [
        *WITHOUT_STORE,
        *VERBS,
    ]
    for verb in (*WITHOUT_STORE, *VERBS):
        (sentence,) = re.findall(rf"^  {verb} +(\S.*)$", overview, re.MULTILINE)
        assert len(sentence) <= MOST_LETTERS
        assert re.fullmatch(r"[A-Z].*[^.]\.", sentence), "a whole sentence, not cut"


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_explains_its_store_and_exit_codes(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(help_of(capsys, verb).split())
    assert text.startswith(f"Usage: retain {verb} ")
    assert "--store" in text
    for code in ("0 done", "1 a run failed", "2 invalid study", "3 the environment lacks", "130 interrupted"):
        assert code in text
