"""The pages of docs/ that are generated, as a whole or in part: `python -m tools.generated_pages` renews them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tools.api_reference import api_reference
from tools.command_reference import command_reference
from tools.field_reference import field_reference
from tools.study_table import study_table, with_table

DOCS = Path(__file__).parents[1] / "docs"
GENERATED: Mapping[str, Callable[[str], str]] = {
    "reference/fields.md": lambda text: field_reference(),
    "reference/commands.md": lambda text: command_reference(),
    "reference/api.md": lambda text: api_reference(),
    "studies.md": lambda text: with_table(text, study_table()),
}
"""By the path of a page in docs/: its present text to the text that it must have."""


def main() -> None:
    for name, generate in GENERATED.items():
        path = DOCS / name
        path.write_text(generate(path.read_text(encoding="utf-8") if path.exists() else ""), encoding="utf-8")


if __name__ == "__main__":
    main()
