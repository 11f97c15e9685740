import subprocess
import sys

import pytest

VERBS = [
    "plan",
    "data",
    "run",
    "status",
    "logs",
    "results",
    "board",
    "why",
    "export",
    "verify",
    "submit",
    "doctor",
]


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    script = "import sys; from retain.launchers.cli.app import main; main(['--help']); print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    help_text, modules = printed.rsplit("\n", 2)[0], printed.split()
    assert all(verb in help_text for verb in VERBS)
    for heavy in ("torch", "lightning", "transformers", "datasets", "pandas", "matplotlib", "rich", "pydantic", "yaml"):
        assert heavy not in modules


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "retain.launchers.cli.app", verb, "--help"], capture_output=True, text=True, check=True
    )
    assert "--store" in printed.stdout
