import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.datamodules.corpora.documents import read_documents
from retain.datamodules.corpora.reading.templates import Template
from retain.datamodules.corpora.responses.records import record_reader
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.corpora import Corpus
from retain.sweeps.schema.published_corpora import template_pieces

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
def test_a_template_joins_the_fields_of_a_record(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, ROWS)
    assert joined(tmp_path, name) == ["Q: why {x}?\nA: because", "Q: how?\nA: so"]
    assert joined(tmp_path, name, "{answer}, {{sic}}") == ["because, {sic}", "so, {sic}"]


@given(
    st.dictionaries(st.from_regex("[a-z]{1,5}", fullmatch=True), st.text(), min_size=1), st.text("x{}\n ", max_size=5)
)
def test_a_template_gives_the_same_text_as_str_format(record: dict[str, str], between: str) -> None:
    escaped = between.replace("{", "{{").replace("}", "}}")
    text = escaped.join(f"{{{field}}}" for field in record)
    assert Template(tuple(template_pieces(text)), "template").join(record, "here") == text.format(**record)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (
            "answer",
            5,
            "field 'answer' is of type int, expected text; correct `template:` in the corpus, or fix the record",
        ),
        ("reply", "so", "field 'answer' not found (the fields are question, reply); correct `template:` in the corpus"),
    ],
)
def test_a_missing_or_non_text_field_is_reported_in_one_sentence(
    tmp_path: Path, name: str, field: str, value: Any, problem: str
) -> None:
    write(tmp_path / name, [{"question": "how?", field: value}])
    with pytest.raises(StudyError) as raised:
        joined(tmp_path, name)
    message = str(raised.value)
    assert message.startswith(str(tmp_path / name))
    assert message.endswith(f": {problem}")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_record_with_a_null_field_is_skipped(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [*ROWS, {"question": "what?", "answer": None, "n": 3}])
    assert len(joined(tmp_path, name)) == 2
    assert joined(tmp_path, name, "{question}") == ["why {x}?", "how?", "what?"]


@pytest.mark.parametrize(("name", "record"), [("a.jsonl", "line 1"), ("a.parquet", "row 1")])
def test_an_invalid_record_is_named_by_its_number(tmp_path: Path, name: str, record: str) -> None:
    write(tmp_path / name, ROWS)
    with pytest.raises(StudyError, match=f"{name}, {record}: field 'n' is of type int"):
        joined(tmp_path, name, "{question} {n}")


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
def test_a_template_with_more_than_plain_fields_is_refused_when_the_study_is_read(template: str, words: str) -> None:
    with pytest.raises(ValueError, match="template") as refused:
        Corpus(files="a.jsonl", template=template)
    assert words in str(refused.value)


def test_template_and_text_cannot_both_be_given() -> None:
    with pytest.raises(ValueError, match="template: cannot be combined with text; remove text"):
        Corpus(files="a.jsonl", template=QA, text="question")
    assert record_reader(Corpus(files="a.jsonl", template=QA), None).fields == ["question", "answer"]
    assert record_reader(Corpus(files="a.jsonl", text="body"), None).fields == ["body"]
