"""What README, ARCHITECTURE and docs/ name exists: files, functions, commands, fields, messages; and their examples work."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

import retain
from retain.launchers.stage.failures import CLASSES
from retain.sweeps.base.yaml_text import read_yaml
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.read import check_study, read_study
from retain.sweeps.schema.search_space import SearchBlock
from retain.sweeps.schema.section import STAGE_KINDS
from retain.sweeps.schema.sites import read_sites
from retain.sweeps.schema.study import Study
from tools.command_reference import verbs

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
IGNORED = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
"""What using Retain makes here, such as runs/, of which pages name paths that need not exist."""
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()} - IGNORED
PACKAGE = ("sweeps", "datamodules", "lightning_modules", "launchers", "results", "retain")
SECTIONS = r"pretrain|posttrain|finetune|execution|search|corpora|model|tokenizer"


def name_of(page: object) -> str:
    assert isinstance(page, Path)
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def code_spans(page: Path) -> list[str]:
    """The texts in backticks."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [" ".join(span.replace("\\|", "|").split()) for span in re.findall(r"`([^`]+)`", text)]


def code_blocks(page: Path, language: str) -> list[str]:
    """The texts of the fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@every_page
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [each for each in targets if not each.startswith("http") and not (page.parent / each).exists()]
    assert missing == []


@every_page
def test_every_path_and_function_exists(page: Path) -> None:
    named = [span for span in code_spans(page) if re.fullmatch(r"[\w.*-]+(/[\w.*-]*)+(::[\w.]+)?", span)]
    ours = [span.partition("::") for span in named if span.split("/")[0] in FOLDERS]
    missing = [path for path, _, _ in ours if not list(ROOT.glob(path.rstrip("/")))]
    missing += [f"{path}::{name}" for path, _, name in ours if name and name not in definitions(ROOT / path)]
    assert missing == []


@cache
def definitions(path: Path) -> frozenset[str]:
    """The functions, classes, methods and constants that a file defines."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return frozenset(found)


def commands(page: Path) -> Iterator[list[str]]:
    """The commands in shell blocks, in indented blocks and in backticks, as words."""
    lines = [line for block in code_blocks(page, "sh") for line in block.splitlines()]
    lines += re.findall(r"^ {4}(retain .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    lines += [span for span in code_spans(page) if re.match(r"(retain|python|make) ", span)]
    for line in lines:
        for command in re.split(r"&&|\|(?= )", line):
            if words := shlex.split(command, comments=True):
                yield words


@every_page
def test_every_command_has_the_verb_and_the_options_that_are_shown(page: Path) -> None:
    wrong = []
    for words in commands(page):
        program, *rest = words
        if program.endswith("retain") and rest and not rest[0].isupper() and not rest[0].startswith("-"):
            verb = verbs().get(rest[0])
            known = {"--help"} | {option for one in verb.params for option in one.opts} if verb else set()
            options = [word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
            wrong += [words] if verb is None or not set(options) <= known else []
        elif "python" in program and rest[:1] == ["-m"] and rest[1].split(".")[0] in FOLDERS:
            wrong += [] if (ROOT / rest[1].replace(".", "/")).with_suffix(".py").exists() else [words]
        elif program == "make":
            wrong += [] if re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE) else [words]
    assert wrong == []


@every_page
def test_every_field_of_a_study_that_is_named_exists(page: Path) -> None:
    paths = [span.partition("=")[0].partition(":")[0] for span in code_spans(page)]
    paths = [path for path in paths if re.fullmatch(rf"({SECTIONS})(\.\w+)+", path)]
    unknown = [path for path in paths if not has_field(Study, path.split(".")) and not in_another_schema(path)]
    assert unknown == []


def in_another_schema(path: str) -> bool:
    section, *rest = path.split(".")
    return has_field(LinearStudy, [section, *rest]) or (section == "search" and has_field(SearchBlock, rest))


def has_field(section: Any, path: list[str]) -> bool:
    """Whether a section has a field at a path. A part in capitals stands for any name."""
    if not path:
        return True
    if isinstance(section, type) and issubclass(section, BaseModel):
        field = section.model_fields.get(path[0])
        return field is not None and has_field(field.annotation, path[1:])
    inner = getattr(section, "__args__", ())
    rest = path[1:] if getattr(section, "__origin__", None) is dict else path
    return any(has_field(one, rest) for one in inner)


@every_page
def test_every_function_of_the_public_api_that_is_named_exists(page: Path) -> None:
    text = "\n".join([*code_blocks(page, "python"), *code_spans(page)])
    assert set(re.findall(r"\bretain\.(\w+)\(", text)) <= set(retain.__all__)


@every_page
def test_the_examples_of_studies_and_sites_are_valid(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base: dict[str, Any] = read_yaml(ROOT / "sweeps" / "studies" / "laptop.yaml")
    for number, block in enumerate(code_blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        fields = yaml.safe_load(block)
        if "study" in fields:
            read_study(str(path))
        elif set(fields) <= {*Study.model_fields, *fields.get("stages", ())}:
            whole = base | {"grid": {}} | fields
            left_out = set(STAGE_KINDS) - set(whole.get("stages", STAGE_KINDS))
            check_study({name: part for name, part in whole.items() if name not in left_out}, path)
        else:
            monkeypatch.setenv("RETAIN_SITES", str(path))
            read_sites()


TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"


def test_every_failure_class_has_its_section_in_troubleshooting() -> None:
    headings = re.findall(r"^### `(.+)`$", TROUBLESHOOTING.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(CLASSES)


def test_every_message_in_troubleshooting_is_one_that_retain_prints() -> None:
    _, _, text = TROUBLESHOOTING.read_text(encoding="utf-8").partition("## Messages about the study")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    quoted = [part for row in rows for part in re.findall(r"`([^`]+)`", row)]
    assert quoted
    assert [part for part in quoted if not any(part in literal for literal in literals())] == []


@cache
def literals() -> tuple[str, ...]:
    """Every string of the package's code, with a NUL for each value that is formatted into it."""
    found = []
    for path in (path for folder in PACKAGE for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(one.value) if isinstance(one, ast.Constant) else "\0" for one in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)
