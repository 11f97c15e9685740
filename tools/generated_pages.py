"""The pages of docs/ that are generated, as a whole or in part: `python -m tools.generated_pages` renews them."""

from collections.abc import Iterator
from pathlib import Path

from tools.api_reference import api_reference
from tools.command_reference import command_reference
from tools.field_reference import field_reference
from tools.study_table import study_table, with_table

DOCS = Path(__file__).parents[1] / "docs"


def generated_pages() -> Iterator[tuple[Path, str]]:
    """Each page with the text that it must have."""
    yield DOCS / "reference" / "fields.md", field_reference()
    yield DOCS / "reference" / "commands.md", command_reference()
    yield DOCS / "reference" / "api.md", api_reference()
    studies = DOCS / "studies.md"
    yield studies, with_table(studies.read_text(encoding="utf-8"), study_table())


if __name__ == "__main__":
    for path, text in generated_pages():
        path.write_text(text, encoding="utf-8")
