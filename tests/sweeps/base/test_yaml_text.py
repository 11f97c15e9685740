"""YAML values mean what they show, and whatever cannot be read is one sentence with the line and the cure."""

import ast
import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.units import parse_number
from retain.sweeps.base.yaml_text import is_written, parse_yaml, read_yaml, written, yaml_of

SCALARS = st.text("0123456789_.:+-eExXoObBaAfFiInNyYtT ~", max_size=12) | st.text(max_size=8)


def error_of(action: Callable[[], Any]) -> str:
    with pytest.raises(StudyError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1_000", 1000),
        ("0x1F", 31),
        ("0o17", 15),
        ("5e-5", 5e-5),
        ("+3", 3),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        # YAML 1.1 reads these as other values.
        ("yes", "yes"),
        ("no", "no"),
        ("0123", "0123"),
        ("08", "08"),
        ("12:30", "12:30"),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("1__0", "1__0"),
        ("0x_", "0x_"),
        ("0b_", "0b_"),
        ("=", "="),
    ],
)
def test_a_plain_value_means_what_it_shows(written: str, value: Any) -> None:
    (read,) = parse_yaml(f"[{written or '~'}]", "x.yaml")
    assert (read, type(read)) == (value, type(value))


@given(SCALARS)
def test_a_number_is_what_python_and_json_read_or_an_error(text: str) -> None:
    try:
        number = parse_number(text)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    assert not message or " is not a number; write " in message
    if message:
        return
    for read in (
        lambda: ast.literal_eval(text.strip("+")),
        lambda: json.loads(text),
        lambda: float(text.replace(".inf", "inf")),
    ):
        try:
            other = read()
        except (ValueError, SyntaxError, TypeError):
            continue
        assert other == number or math.isnan(number)


@given(st.text(max_size=60) | st.text("ab:-[]{}&*!|>'\"%@` \t\n0.?,<=#", max_size=30))
def test_any_text_is_a_value_or_one_sentence(text: str) -> None:
    message = "x.yaml: invalid YAML in line "
    try:
        parse_yaml(text, "x.yaml")
    except StudyError as error:
        message = str(error)
    assert message.startswith("x.yaml: invalid YAML in line ")
    assert "\n" not in message


@given(
    st.recursive(
        SCALARS | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none(), st.lists, max_leaves=5
    )
)
def test_written_fields_are_read_back_unchanged(value: Any) -> None:
    try:
        yaml.reader.Reader(str(value))
    except yaml.YAMLError:
        return
    assert parse_yaml(yaml_of({"a": value}), "x.yaml") == {"a": value}


def test_names_are_text_as_they_are_written() -> None:
    assert parse_yaml("{yes: 1, 1e-4: 2, 010: 3, null: 4, 12:30: 5}", "x.yaml") == {
        "yes": 1,
        "1e-4": 2,
        "010": 3,
        "null": 4,
        "12:30": 5,
    }


def test_values_below_a_path_are_text_as_they_are_written() -> None:
    text = "{base: &base {environment: {E: 12.10}}, slurm: {<<: *base, extra: {a: true, b: 010, c: 1.50, d: }}}"
    read = parse_yaml(text, "x.yaml", ["slurm.environment", "slurm.extra"])
    assert read["slurm"] == {"environment": {"E": "12.10"}, "extra": {"a": True, "b": "010", "c": "1.50", "d": None}}
    for odd in ("slurm: &a {<<: *a}", "slurm: {environment: &a [*a]}", "slurm: &a {<<: [{<<: *a}]}"):
        with contextlib.suppress(StudyError):
            parse_yaml(odd, "x.yaml", ["slurm.environment", "slurm.extra"])
    assert parse_yaml("12.10", "x", ["*.environment"], at="north.environment.A") == "12.10"
    assert parse_yaml("12.10", "x", ["*.environment"], at="north.minutes") == 12.1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: !!int abc", "line 2: 'abc' is not a valid int"),
        ("a: !!float 12:30", "line 1: '12:30' is not a valid float"),
        ("a: 1e400", "line 1: '1e400' is not a valid float, or too long"),
        ("a: !!bool abc", "line 1: 'abc' is not a valid bool"),
        ("a: !!timestamp 2024-13-01", "line 1: unknown tag; remove the tag that begins with !"),
        ("a: !!set {b}", "line 1: unknown tag"),
        (f"a: 1\nb: {'9' * 5000}", "line 2: '999999999999...9999999999999' is not a valid int, or too long"),
        (f"a:\n  {'[' * 1000}{']' * 1000}", "line 2: nested more than 50 deep; write fewer brackets"),
        (f"a:\n  {'{a: ' * 1000}{'}' * 1000}", "line 2: nested more than 50 deep"),
        ("a: &a [*a]", "line 1: a value that contains itself"),
        ("a: *b", "line 1: an alias that no anchor above defines; quote text that begins with *"),
        ("a: 1\nb: *", "line 2: text cannot begin with * or &; quote the text"),
        ("a: 1\n? [b]\n: 2", "line 2: a list or mapping as the name of a field"),
        ("a: 1\n<<: 5", "line 2: << merges mappings only"),
        ("a:\n\tb: 1", "line 2: a tab between values; use spaces"),
        ("a: [1", "line 1: a bracket or a comma is missing"),
        ("a: 'b", "line 1: a quote is not closed"),
        ("a: 1\n b: 2", "line 2: a colon where no field can begin"),
        ("a:\n  b: 1\n c: 2", "line 3: the line does not align with the one above"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins here"),
        ("a: 1\nb: \x00", "line 2: the character U+0000; remove it"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_with_the_line_and_the_cure(
    text: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert error_of(lambda: read_yaml(tmp_path / "x.yaml")).startswith(f"x.yaml: invalid YAML in {sentence}")


def test_files_of_other_encodings_are_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("\ufeffa: é\r\nb: 1\r\n".encode())
    assert read_yaml(path) == {"a": "é", "b": 1}
    path.write_bytes("a: 1\nb: é".encode("latin-1"))
    assert "cannot read the file: line 2 is not UTF-8; save the file as UTF-8" in error_of(lambda: read_yaml(path))
    assert "cannot read the file (Is a directory)" in error_of(lambda: read_yaml(tmp_path))


VALUES: list[tuple[object, str, list[str], list[str]]] = [
    (None, "null", ["null", "None", "none"], ["0", "", "false"]),
    (True, "true", ["true", "True"], ["1", "yes", "false"]),
    (
        (0.25, 0.5),
        "[0.25, 0.5]",
        ["[0.25,0.5]", "[ 0.25, 5e-1 ]", "(0.25, 0.5)"],
        ["[0.25]", "0.25", "[0.25", "[0.25, 1]"],
    ),
    (
        {"every": 5, "split": "tune"},
        "{every: 5, split: tune}",
        ["{every: 5}", "{split: tune, every: 5}"],
        ["{every: 6}", "5"],
    ),
    ([{"share": 0.1}], "[{share: 0.1}]", ["[{share: 0.1}]"], ["{share: 0.1}"]),
    ("uniform", "uniform", ["uniform", "Uniform"], ["unifor"]),
    (5e-05, "5e-05", ["5e-5", "0.00005"], ["5e-4", "true", "null"]),
    (300_000_000, "300000000", ["300M", "3e8"], ["300k"]),
]


@pytest.mark.parametrize(("value", "shown", "same", "other"), VALUES, ids=[shown for _, shown, _, _ in VALUES])
def test_a_value_is_shown_as_a_study_file_writes_it_and_found_in_every_such_way(
    value: object, shown: str, same: list[str], other: list[str]
) -> None:
    assert written(value) == shown
    assert all(is_written(value, text) for text in [shown, *same])
    assert not any(is_written(value, text) for text in other)
