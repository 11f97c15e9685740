"""The one reader of the JSON documents of a store: it checks a document's format and fields by type hints.

A document is declared as a frozen dataclass, or as a TypedDict where readers want a mapping. Fields that a declaration lacks
are ignored; those of a TypedDict, and of a dataclass with a field `unknown`, are kept. Fields with a default may be missing.
A document without a `format` has format 1.
"""

import dataclasses
import functools
import json
import os
import stat
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

from retain.sweeps.base.errors import FAULTS, DamageError, NewerFormatError, os_reason
from retain.sweeps.base.files import write_json

FORMAT = 1
UNKNOWN = "unknown"
"""The field of a dataclass that keeps the fields of a document which this version does not know."""

Document = TypeVar("Document")
Check = Callable[[Any], Any]
"""Returns a JSON value as the value of a type. Raises _Invalid."""


class _Type(NamedTuple):
    """How values of a type are checked. Values of the `plain` Python types, as in most fields, need no `check`."""

    check: Check
    plain: tuple[type, ...] = ()


_ANYTHING = _Type(lambda value: value)


class _Invalid(Exception):
    """What is wrong with a value, and the path to it, innermost part first."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem, self.path = problem, list[str]()


def read_document(path: Path | str, kind: type[Document], cure: str) -> Document:
    """Read a JSON document.

    cure: what to do about a damaged file, as a clause. Raises FileNotFoundError if there is no file, NewerFormatError, or
    DamageError if the file is damaged, cannot be read, or is something else than a file.
    """
    return parsed(read_bytes(path, cure), kind, path, cure)


def parsed(content: bytes, kind: type[Document], where: object, cure: str) -> Document:
    """The document with this content. where: its file, for errors; raises as `read_document` does."""
    if not content:
        raise DamageError(f"{where} is empty; {cure}")
    try:
        text = content.decode()
        value = _DECODER.decode(text)
        if "\\u" in text:
            # Lone surrogates cannot be printed, but for those that stand for the bytes of a file name.
            json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{where} is damaged ({error}); {cure}") from None
    return checked(value, kind, where, cure)


def checked(value: object, kind: type[Document], where: object, cure: str) -> Document:
    """A JSON value as a document. Raises as `read_document` does."""
    if isinstance(value, dict):
        made = value.get("format", FORMAT)
        if type(made) is not int:
            raise DamageError(f"{where}: format must be a whole number, and is {_shown(made)}; {cure}")
        if made > FORMAT:
            raise NewerFormatError(
                f"{where} has format {made}, and this version of Retain reads up to {FORMAT}; use the version that wrote it"
            )
    try:
        document: Document = _type_of(kind).check(value)  # type: ignore[arg-type]  # types are hashable
        return document
    except _Invalid as invalid:
        field = "".join(reversed(invalid.path)).removeprefix(".")
        raise DamageError(f"{where}{field and f': {field}'} {invalid.problem}; {cure}") from None


def write_document(path: Path, fields: Mapping[str, Any], mode: int | None = None) -> None:
    """Replace a document, with its format as the first field. mode: as in `write_bytes`."""
    write_json(path, {"format": FORMAT} | dict(fields), mode)


def read_bytes(path: Path | str, cure: str) -> bytes:
    """The content of a file of a store. Raises as `read_document` does, and never waits for a pipe or a device."""
    return read_bytes_and_status(path, cure)[0]


def read_bytes_and_status(path: Path | str, cure: str) -> tuple[bytes, os.stat_result]:
    """`read_bytes`, and the status that the same file had before its content was read."""
    try:
        # O_NONBLOCK: a named pipe without a writer would block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if os.path.islink(path):
            raise DamageError(f"{path} is a link to a file that does not exist; {cure}") from None
        raise
    except OSError as error:
        raise unreadable(path, error, cure) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DamageError(f"{path} is not a file; {cure}")
        content = os.read(descriptor, status.st_size + 1)
        while part := os.read(descriptor, 1 << 16):
            content += part
        return content, status
    except OSError as error:
        raise unreadable(path, error, cure) from error
    finally:
        os.close(descriptor)


def unreadable(path: Path | str, error: OSError, cure: str) -> DamageError:
    """The error for a file that the operating system does not let us read."""
    if isinstance(error, PermissionError):
        cure = "ask its owner for permission to read it"
    elif error.errno in FAULTS:
        cure = "check the file system, and try again: the file may be whole"
    return DamageError(f"{path} cannot be read ({os_reason(error)}); {cure}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_SCALARS: Mapping[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text"),
    int: ((int,), "a whole number"),
    float: ((float, int), "a number"),
    bool: ((bool,), "true or false"),
    types.NoneType: ((types.NoneType,), "null"),
}


@functools.cache
def _type_of(hint: Any) -> _Type:
    """How values of a type are checked."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SCALARS:
        return _scalar([hint])
    if origin is typing.NotRequired:
        return _type_of(arguments[0])
    if origin is typing.Annotated:  # Annotated[str, "one", "another"]: text that is one of these
        return _Type(_literal(arguments[1:]))
    if origin is Literal:
        return _Type(_literal(arguments))
    if origin in (typing.Union, types.UnionType):
        if all(argument in _SCALARS for argument in arguments):
            return _scalar(arguments)
        return _Type(_union([_type_of(argument).check for argument in arguments]))
    if origin in (tuple, list, Sequence):
        return _Type(_sequence(list if origin is Sequence else origin, _type_of(arguments[0])))
    if origin in (dict, Mapping):
        return _Type(_mapping(_type_of(arguments[1])))
    if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
        return _Type(_fields(hint))
    if hint is Any:
        return _ANYTHING
    raise TypeError(f"no document has a field of the type {hint}")


def _scalar(hints: Sequence[Any]) -> _Type:
    kinds = tuple(kind for hint in hints for kind in _SCALARS[hint][0])
    names = " or ".join(_SCALARS[hint][1] for hint in hints)

    def check(value: Any) -> Any:
        if type(value) not in kinds:
            raise _Invalid(f"must be {names}, and is {_shown(value)}")
        return value

    return _Type(check, kinds)


def _union(checks: Sequence[Check]) -> Check:
    def check(value: Any) -> Any:
        problems = []
        for one in checks:
            try:
                return one(value)
            except _Invalid as invalid:
                problems.append(invalid)
        # The choice that got deepest is the one that was meant.
        raise max(problems, key=lambda invalid: len(invalid.path))

    return check


def _literal(values: tuple[Any, ...]) -> Check:
    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in values:
            raise _Invalid(f"must be one of {', '.join(values)}, and is {_shown(value)}")
        return value

    return check


def _sequence(build: Callable[[list[Any]], Any], item: _Type) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not list:
            raise _Invalid(f"must be a list, and is {_shown(value)}")
        found = []
        for one in value:
            try:
                found.append(one if type(one) in item.plain else item.check(one))
            except _Invalid as invalid:
                invalid.path.append(f"[{len(found)}]")
                raise
        return build(found)

    return check


def _mapping(item: _Type) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not dict:
            raise _Invalid(f"must be a mapping, and is {_shown(value)}")
        return dict(value) if item is _ANYTHING else _each(dict.fromkeys(value, item), value)

    return check


def _fields(kind: Any) -> Check:
    hints = {name: hint for name, hint in typing.get_type_hints(kind, include_extras=True).items() if name != UNKNOWN}
    known = {name: _type_of(hint) for name, hint in hints.items()}
    is_mapping = typing.is_typeddict(kind)
    if is_mapping:
        keeps = True
        required = [name for name in known if name in kind.__required_keys__]
    else:
        fields = {field.name: field for field in dataclasses.fields(kind)}
        keeps = UNKNOWN in fields
        missing = dataclasses.MISSING
        required = [name for name in known if fields[name].default is fields[name].default_factory is missing]

    def check(value: Any) -> Any:
        if type(value) is not dict:
            raise _Invalid(f"must be a mapping, and is {_shown(value)}")
        found = _each(known, value)
        for name in required:
            if name not in found:
                raise _Invalid(f"lacks the field {name}")
        if keeps and len(found) < len(value):
            others = {name: one for name, one in value.items() if name not in found}
            if is_mapping:
                return others | found
            if others.pop("format", None) is None or others:
                found[UNKNOWN] = others
        return found if is_mapping else kind(**found)

    return check


def _each(known: Mapping[str, _Type], value: Mapping[str, Any]) -> dict[str, Any]:
    """The checked fields of a mapping, those that it has."""
    found = {}
    for name, kind in known.items():
        if name in value:
            one = value[name]
            try:
                found[name] = one if type(one) in kind.plain else kind.check(one)
            except _Invalid as invalid:
                invalid.path.append(f".{name}")
                raise
    return found


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
