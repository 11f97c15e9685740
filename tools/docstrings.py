"""Docstrings of classes and their attributes, as text for Markdown tables."""

import ast
import inspect
import itertools
import textwrap


def attribute_docs(owner: type) -> dict[str, tuple[str, str]]:
    """The annotated attributes of a class body, in order: annotation and docstring, which is empty if there is none."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        node.target.id: (ast.unparse(node.annotation), _text(below))
        for node, below in itertools.pairwise([*definition.body, ast.Pass()])
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _text(node: ast.stmt) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""


def one_line(text: str) -> str:
    """A text as one line that is safe in a Markdown table. Text in backticks stays as it is."""
    pieces = " ".join(text.split()).replace("|", "\\|").split("`")
    pieces[::2] = [piece.replace("<", "&lt;").replace("*", "\\*") for piece in pieces[::2]]
    return "`".join(pieces)
