import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.datamodules.corpora.documents import read_documents
from retain.datamodules.corpora.templates import Template, template_of
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.published_corpora import template_pieces
from retain.sweeps.schema.study import Corpus

QA = "Q: {question}\nA: {answer}"
ROWS = [{"question": "why {x}?", "answer": "because", "n": 1}, {"question": "how?", "answer": "so", "n": 2}]


def joined(folder: Path, files: str, template: str = QA) -> list[str]:
    return list(read_documents(Corpus(files=files, template=template), folder))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_the_fields_of_a_record_are_joined_as_the_template_says(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, ROWS)
    assert joined(tmp_path, name) == ["Q: why {x}?\nA: because", "Q: how?\nA: so"]
    assert joined(tmp_path, name, "{answer}, {{sic}}") == ["because, {sic}", "so, {sic}"]


@given(
    st.dictionaries(st.from_regex("[a-z]{1,5}", fullmatch=True), st.text(), min_size=1), st.text("x{}\n ", max_size=5)
)
def test_joining_is_the_formatting_of_python_for_plain_texts(record: dict[str, str], between: str) -> None:
    escaped = between.replace("{", "{{").replace("}", "}}")
    text = escaped.join(f"{{{field}}}" for field in record)
    assert Template(tuple(template_pieces(text)), "template").join(record, "here") == text.format(**record)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize(("field", "value"), [("answer", None), ("answer", 5), ("reply", "so")])
def test_a_field_that_is_missing_or_no_text_is_one_sentence(tmp_path: Path, name: str, field: str, value: Any) -> None:
    write(tmp_path / name, [{"question": "how?", field: value}])
    with pytest.raises(StudyError) as refused:
        joined(tmp_path, name)
    message = str(refused.value)
    assert message.startswith(str(tmp_path / name))
    assert message.endswith(f"no text in field 'answer' (it has question, {field}); set template: in the corpus")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("no field", "names no field; write for instance"),
        ("{}", "{} is not a plain field name"),
        ("{0}", "{0} is not a plain field name"),
        ("{a.b}", "{a.b} is not a plain field name"),
        ("{a!r}", "{a} is not a plain field name"),
        ("{a:>9}", "{a} is not a plain field name"),
        ("{a", "is not a template"),
    ],
)
def test_a_template_that_asks_for_more_than_fields_is_refused_at_once(template: str, words: str) -> None:
    with pytest.raises(ValueError, match="template") as refused:
        Corpus(files="a.jsonl", template=template)
    assert words in str(refused.value)


def test_a_template_names_the_fields_so_that_text_cannot_be_given_too() -> None:
    with pytest.raises(ValueError, match="template: cannot be combined with text; remove text"):
        Corpus(files="a.jsonl", template=QA, text="question")
    assert template_of(Corpus(files="a.jsonl", template=QA)).fields == ["question", "answer"]
    assert template_of(Corpus(files="a.jsonl", text="body")).fields == ["body"]
