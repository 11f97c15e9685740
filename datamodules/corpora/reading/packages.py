"""Read corpora from installed Python packages: docstrings, instructions, ABC tunes, compound records."""

import ast
import importlib.metadata
import importlib.util
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from retain.sweeps.base.errors import MissingResourceError, StudyError

DOCSTRING_PACKAGES = ("matplotlib", "pandas", "scipy")
"""Large packages of plain Python, pinned by the lock file, with the same files on every Python version and platform."""

INSTRUCTION_PACKAGES = ("networkx", "sympy")
"""Dependencies of torch in plain Python; not in DOCSTRING_PACKAGES, so that no text is in both corpora."""

MIN_DOCSTRING_CHARACTERS = 100
"""Shorter docstrings are left out."""


def read_docstrings() -> Iterator[str]:
    """Yield the docstrings of modules, classes and functions, without the packages' tests: 8,100 documents, 9.1 MB."""
    for _, _, text in _docstrings(DOCSTRING_PACKAGES):
        yield text


def read_instructions() -> Iterator[str]:
    """Yield the docstrings of two other packages as instructions and responses: 7,900 documents, 7.5 MB.

    The instruction asks to explain a class or function, by module, name and arguments; the response is its docstring.
    """
    for record in instruction_records():
        yield f"### Instruction:\n{record['instruction']}\n\n### Response:\n{record['response']}"


def instruction_records() -> Iterator[dict[str, Any]]:
    """Yield the same instructions as records: fields instruction and response, and messages, a conversation of the two.

    Further fields are for pairs: `name`, that of the class or function with its module; `summary`, the first paragraph of the
    response; and `details`, the second one, which is empty if there is none.
    """
    for module, node, text in _docstrings(INSTRUCTION_PACKAGES):
        if not isinstance(node, ast.Module):
            arguments = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
            instruction = f"Explain `{node.name}{arguments}` of {module} and show how to use it."
            turns = (("user", instruction), ("assistant", text))
            messages = [{"role": role, "content": content} for role, content in turns]
            summary, details, *_ = (" ".join(paragraph.split()) for paragraph in f"{text}\n\n".split("\n\n"))
            pair = {"name": f"{module}.{node.name}", "summary": summary, "details": details}
            yield {"instruction": instruction, "response": text, "messages": messages, **pair}


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _docstrings(packages: tuple[str, ...]) -> Iterator[tuple[str, Documented, str]]:
    """Yield (module name, documented node, docstring) for packages, without their tests."""
    for package in packages:
        folder = _folder(package)
        for path in sorted(folder.rglob("*.py")):
            if "tests" not in path.parts and "_version" not in path.name and "__config__" not in path.name:
                module = ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
                for node, text in _docstrings_in(path.read_text(encoding="utf-8")):
                    yield module, node, text


def _docstrings_in(source: str) -> Iterator[tuple[Documented, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        module = ast.parse(source)
    # Depth first, in source order. Only statements can hold a docstring, so expressions are not visited.
    stack: list[ast.AST] = [module]
    while stack:
        node = stack.pop()
        if isinstance(node, Documented) and (text := ast.get_docstring(node, clean=False)):
            text = inspect.cleandoc(text)
            if len(text) >= MIN_DOCSTRING_CHARACTERS:
                yield node, text
        stack += reversed([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])


def read_tunes() -> Iterator[str]:
    """Yield the ABC tunes of music21's corpus, one document a tune; a tune begins at its X: field."""
    for path in sorted((_folder("music21") / "corpus").rglob("*.abc")):
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
        for tune in re.split(r"^(?=X:)", text, flags=re.MULTILINE):
            if "\nK:" in tune:
                yield tune.strip()


def read_compounds() -> Iterator[str]:
    """Yield the compound records of the package chemicals' identifier tables, one document a record."""
    folder = _folder("chemicals") / "Identifiers"
    for name in (
        "chemical identifiers pubchem small.tsv",
        "chemical identifiers example user db.tsv",
        "Inorganic db.tsv",
    ):
        with (folder / name).open(encoding="utf-8") as table:
            yield from (record for line in table if (record := line.strip()))


READERS: dict[str, tuple[tuple[str, ...], Callable[[], Iterator[str]]]] = {
    "docstrings": (DOCSTRING_PACKAGES, read_docstrings),
    "instructions": (INSTRUCTION_PACKAGES, read_instructions),
    "music21": (("music21",), read_tunes),
    "chemicals": (("chemicals",), read_compounds),
}
"""For each corpus, the packages it is read from and the function that reads it."""


def package_versions(name: str) -> dict[str, str]:
    """Return the versions of the packages that a corpus is read from.

    Raises StudyError if the corpus is unknown, MissingResourceError if a package is not installed.
    """
    if name not in READERS:
        raise StudyError(f"package: unknown corpus {name!r}; choose one of {', '.join(READERS)}")
    return {package: importlib.metadata.version(package) for package in READERS[name][0] if _folder(package)}


def read_package(name: str) -> Iterator[str]:
    """Yield the documents of a corpus, by its name in READERS."""
    return READERS[name][1]()


def package_records(name: str) -> Iterator[dict[str, Any]]:
    """Yield the documents of a corpus as records: the field text, or for instructions those of `instruction_records`."""
    if name == "instructions":
        yield from instruction_records()
    else:
        yield from ({"text": document} for document in read_package(name))


def _folder(package: str) -> Path:
    """Return the folder a package is installed in, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingResourceError(f"package {package} is not installed; run `pip install 'retain-lm[demo]'`")
    return Path(spec.origin).parent
