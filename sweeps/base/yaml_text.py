"""YAML in which every plain value means what it shows.

YAML 1.1 reads 12:30:00 as 45000, 0123 as 83, yes as true and 5e-5 as text. Here a plain value is a number only if Python reads
the same number in it, a truth value only as true or false, and else the text as it is written. Names are always text.
"""

import contextlib
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from retain.sweeps.base.errors import StudyError, os_reason
from retain.sweeps.base.units import FLOAT, INTEGER, parse_number, parse_size

DEEPEST = 50
"""The deepest nesting of mappings and lists."""
_TAG = "tag:yaml.org,2002:"
_PROBLEMS = (
    ("mapping values are not allowed", "a colon where no field can begin; indent the line as its neighbours, or quote it"),
    (r"found character '\\t'", "a tab between values; use spaces"),
    ("found character", "text cannot begin with this character; quote the text"),
    ("expected ',' or|expected the node content|did not find expected", "a bracket or a comma is missing or too many"),
    ("found unexpected end of stream", "a quote is not closed; close it"),
    ("could not find expected ':'", "a line without a colon after its field; write field: value"),
    ("expected <block end>", "the line does not align with the one above; indent both with the same number of spaces"),
    ("but found another document", "a second document begins here; remove the line ---"),
    ("expected alphabetic or numeric", "text cannot begin with * or &; quote the text"),
    ("found undefined alias", "an alias that no anchor above defines; quote text that begins with *"),
    ("could not determine a constructor", "unknown tag; remove the tag that begins with !"),
    ("recursive", "a value that contains itself; remove the alias"),
    ("for merging", "<< merges mappings only; name a mapping after it"),
)  # fmt: skip
"""Patterns of the library's messages, each with what the author of a file reads instead."""


def read_yaml(path: Path, texts: Sequence[str] = ()) -> Any:
    """The content of a YAML file. Raises StudyError with the file, the line and the cure if the file cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StudyError(
            f"{path}: cannot read the file ({os_reason(error)}); correct the path, or the permissions of the file"
        ) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StudyError(f"{path}: cannot read the file: line {line} is not UTF-8; save the file as UTF-8") from None
    return parse_yaml(text, path.name, texts)


def parse_yaml(text: str, where: str, texts: Sequence[str] = (), at: str | None = None) -> Any:
    """The value of YAML text. Raises StudyError: one sentence that begins with `where` and names the line.

    texts: dotted paths of mappings whose plain values stay text, as in 12.10; * is any name, and below a path that ends with
    `extra` true and false are kept. at: the dotted path of the value itself, if it is not a whole file.
    """
    names = at.split(".") if at is not None else []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        for name in reversed(names):
            node = yaml.MappingNode(f"{_TAG}map", [(yaml.ScalarNode(f"{_TAG}str", name), node)])
        for path in texts:
            _keep_text(node, path.split("."))
        value = loader.construct_document(node)
        for name in names:
            value = value[name]
        return value
    except yaml.reader.ReaderError as error:
        line, problem = (
            text.count("\n", 0, error.position),
            f"the character U+{ord(text[error.position]):04X}; remove it",
        )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, problem = mark.line if mark else 0, _plain_problem(error.problem or str(error.context))
    raise StudyError(f"{where}: invalid YAML{'' if names else f' in line {line + 1}'}: {problem}") from None


def _plain_problem(problem: str) -> str:
    words = next((words for pattern, words in _PROBLEMS if re.search(pattern, problem)), problem)
    return " ".join(words.split())


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        f"{_TAG}{name}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{name}"] for name in ("null", "bool", "str", "seq")
    } | {None: yaml.SafeLoader.construct_undefined}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.depth == DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"nested more than {DEEPEST} deep; write fewer brackets", mark
            )
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError):  # a tag such as !!int before text
            kind = node.tag.rpartition(":")[2]
            problem = (
                f"{reprlib.repr(node.value)} is not a valid {kind}, or too long; correct it, or quote it if it is text"
            )
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_fields(self, node: yaml.MappingNode) -> dict[str, Any]:
        names: set[str] = set()
        # `<<: *anchor` merges in fields that fields beside it may replace. `<<` itself is not a field.
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a list or mapping as the name of a field; write a plain name"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if key.value in names and key.tag != f"{_TAG}merge":
                problem = f"{key.value} appears twice; remove one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            names.add(key.value)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        return parse_number(node.value)


def _keep_text(node: yaml.Node, path: Sequence[str], seen: frozenset[int] = frozenset()) -> None:
    """Make the plain values at a path text, also in the mappings that << merges."""
    if id(node) in seen:
        return
    if isinstance(node, yaml.SequenceNode):  # << may merge several mappings
        for inner in node.value:
            _keep_text(inner, path, seen | {id(node)})
    elif isinstance(node, yaml.MappingNode):
        for index, (key, value) in enumerate(node.value):
            if key.tag == f"{_TAG}merge":
                _keep_text(value, path, seen | {id(node)})
            elif key.value == path[0] or path[0] == "*":
                if len(path) > 1:
                    _keep_text(value, path[1:])
                else:
                    node.value[index] = (key, _as_text(value, f"{_TAG}bool" if path[0] == "extra" else None))


def _as_text(node: yaml.Node, kept: str | None) -> yaml.Node:
    """A copy of a node in which the value, or each value in it, is text; empty values and those with the tag `kept` stay."""

    def text(value: yaml.Node) -> yaml.Node:
        empty = value.value == "" and getattr(value, "style", None) is None
        if not isinstance(value, yaml.ScalarNode) or empty or value.tag == kept:
            return value
        return yaml.ScalarNode(f"{_TAG}str", value.value, value.start_mark)

    if isinstance(node, yaml.MappingNode):
        return yaml.MappingNode(node.tag, [(key, text(value)) for key, value in node.value], node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return yaml.SequenceNode(node.tag, [text(value) for value in node.value], node.start_mark)
    return text(node)


_NUMBERS = (
    (f"{_TAG}int", re.compile(rf"^{INTEGER}$"), list("-+0123456789")),
    (f"{_TAG}float", re.compile(rf"^(?:{FLOAT}|[-+]?\.(?:inf|nan))$"), list("-+.0123456789")),
)
_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"^<<$"), ["<"])
_Loader.add_constructor(f"{_TAG}map", _Loader.construct_fields)
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_number)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_number)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `parse_yaml` would read as a number; SafeDumper knows only what YAML 1.1 reads as one."""


for _tag, _pattern, _first in _NUMBERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def yaml_of(fields: Any) -> str:
    """YAML text that `parse_yaml` reads back as these plain fields."""
    return str(yaml.dump(fields, Dumper=_Dumper, sort_keys=False, width=120))


def written(value: Any) -> str:
    """A checked value as a study file writes it: null, true, [0.25, 0.5], {every: 5, patience: 3}; numbers as Python does."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {written(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return str(value)


def cell(value: Any) -> str:
    """A value in a table, as a study file writes it: null, and 5e-05 instead of 5e-05000."""
    return f"{value:g}" if isinstance(value, float) else written(value)


def is_written(value: object, text: str) -> bool:
    """Whether a text is a way to write a value of an axis: 5e-5 and 0.00005 are 5e-05, 300M is 300000000, null is nothing.

    A mapping may leave out fields, such as those that have their defaults.
    """
    if text in (str(value), written(value)):
        return True
    if isinstance(value, Mapping | list | tuple):
        with contextlib.suppress(StudyError):
            return _is_part(parse_yaml(text, ""), value)
        return False
    if value is None or isinstance(value, bool | str):
        return text.lower() in (str(value).lower(), written(value))
    for parse in (float, parse_size):
        with contextlib.suppress(ValueError):
            return parse(text) == value
    return False


def _is_part(given: Any, value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(given, dict) and all(
            name in value and _is_part(one, value[name]) for name, one in given.items()
        )
    if isinstance(value, list | tuple):
        return isinstance(given, list) and len(given) == len(value) and all(map(_is_part, given, value))
    return bool(given == value)
