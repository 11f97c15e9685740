"""Corpora that installed Python packages ship: docstrings, instructions, ABC tunes, compound records."""

import ast
import importlib.metadata
import importlib.util
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from retain.sweeps.base.errors import MissingResourceError, StudyError

DOCSTRING_PACKAGES = ("matplotlib", "pandas", "scipy")
"""Large, pinned by the lock file, plain Python, and the same files whatever the Python version or the platform."""

INSTRUCTION_PACKAGES = ("networkx", "sympy")
"""Others than those of the docstrings, so that no text is in both corpora; dependencies of torch, plain Python."""

SHORTEST_DOCSTRING = 100
"""Characters."""


def read_docstrings() -> Iterator[str]:
    """The docstrings of modules, classes and functions, outside the packages' tests: 8,100 documents, 9.1 MB."""
    for _, _, text in _docstrings(DOCSTRING_PACKAGES):
        yield text


def read_instructions() -> Iterator[str]:
    """The docstrings of two more packages as instructions and their responses: 7,900 documents, 7.5 MB.

    The instruction asks for a class or function by its module, name and arguments; the response is its docstring.
    """
    for module, node, text in _docstrings(INSTRUCTION_PACKAGES):
        if not isinstance(node, ast.Module):
            arguments = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
            asked = f"Explain `{node.name}{arguments}` of {module} and show how to use it."
            yield f"### Instruction:\n{asked}\n\n### Response:\n{text}"


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _docstrings(packages: tuple[str, ...]) -> Iterator[tuple[str, Documented, str]]:
    """The docstrings of packages, outside their tests, each with its module and what it stands in."""
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
    # A docstring stands in the body of a definition, so expressions need no visit.
    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Documented) and (text := ast.get_docstring(node, clean=False)):
            text = inspect.cleandoc(text)
            if len(text) >= SHORTEST_DOCSTRING:
                yield node, text
        waiting += reversed([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])


def read_tunes() -> Iterator[str]:
    """The ABC tunes of music21's corpus, one document a tune (it begins at its X: field)."""
    for path in sorted((_folder("music21") / "corpus").rglob("*.abc")):
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
        for tune in re.split(r"^(?=X:)", text, flags=re.MULTILINE):
            if "\nK:" in tune:
                yield tune.strip()


def read_compounds() -> Iterator[str]:
    """The compound records of chemicals' identifier tables, one document a record."""
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


def package_versions(name: str) -> dict[str, str]:
    """The packages that a corpus reads, with their versions. Raises StudyError, MissingResourceError."""
    if name not in READERS:
        raise StudyError(f"package: {name!r} is not known; the packages are {', '.join(READERS)}")
    return {package: importlib.metadata.version(package) for package in READERS[name][0] if _folder(package)}


def read_package(name: str) -> Iterator[str]:
    """The documents of a corpus by its name in READERS."""
    return READERS[name][1]()


def _folder(package: str) -> Path:
    """Where a package is installed, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingResourceError(
            f"the package {package} is not installed; install the extra: pip install retain[demo]"
        )
    return Path(spec.origin).parent
