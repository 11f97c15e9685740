"""A small store with every kind of file, the ways in which files get damaged, and how the verbs end on a damaged store."""

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import retain
from retain.launchers.cli.app import main
from retain.launchers.jobs.submissions import Backlog, new_submission, write_backlog, write_submission
from retain.launchers.planning.looks import Schedule, fix_looks
from retain.launchers.planning.opened_study import open_study, prepare_study
from retain.results.analysis.predictors import predictors_document, save_predictors
from retain.results.report.search import search_part
from retain.results.store.curves import CurveWriter, Point
from retain.results.store.lease import this_process
from retain.results.store.runs import Store
from retain.sweeps.base.documents import write_document
from retain.sweeps.base.errors import RetainError
from retain.sweeps.schema.read import read_study
from tests.studies import linear_study, tiny_study

ARCHIVE = Path(__file__).parents[2] / "data" / "store-0.1.0.tar.gz"
TINY: dict[str, Any] = {
    "grid": {"pretrain.exposure": [0, 1], "finetune.lr": [0.001]},
    "execution": {"save_steps": 4, "parallel": 1},
    "posttrain.max_tokens": 20480,
}
SEARCH = {"axes": {"finetune.lr": [0.005, 0.01, 0.02]}, "searcher": "grid"}
NOBODY = 65_534


@dataclass(frozen=True)
class Place:
    """A store, the two studies in it, and the keys of some of its runs."""

    store: Path
    linear: Path
    tiny: Path
    done: str
    """A done post-training of the linear study."""
    trained: str
    """A done pretraining of the tiny study."""
    stopped: str
    """The stage of the tiny study that was stopped: it has a checkpoint."""

    def copy(self, to: Path) -> "Place":
        """The same in a new folder; the studies are shared, as the data of the tiny study belongs to its files."""
        return replace(self, store=Path(shutil.copytree(self.store, to, symlinks=True)))


def make_place(folder: Path) -> Place:
    """A store of version 0.1.0 with a done linear study, its search, and a stopped tiny study, and what it lacks for a user."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    linear = linear_study(folder / "study", search=SEARCH)
    tiny = tiny_study(folder / "study", **TINY)
    prepare_study(str(tiny), (), folder / "runs")
    store = Store(folder / "runs")
    tree = open_study(str(linear), (), store.root).tree
    trained = next(run for run in store.runs() if run.spec()["study"] == "tiny" and run.is_done())
    (stopped,) = [run for run in store.runs() if run.checkpoint.exists()]
    place = Place(store.root, linear, tiny, tree.trials[0].path[1], trained.key, stopped.key)
    done = store.run(place.done)
    CurveWriter(done.folder, [Point("heldout/pretraining", step, 1.0 + step, 1.0) for step in range(5)])
    dead = replace(this_process(), pid=2**22 + 1)
    write_document(done.folder / "lease.9.json", asdict(dead))
    stopped.adapt(2)
    submission = replace(new_submission([stopped.key]), job_id="12")
    write_submission(store, submission)
    stopped.queue(submission.token)
    write_backlog(store, Backlog((stopped.key,)))
    # The looks at other seeds, so that they change nothing of what is shown of this study.
    fix_looks(replace(read_study(str(tiny)), axes={"seed": [100]}), store.root, Schedule([100], [100, 101], [2], 2))
    save_predictors(store.root, "tiny", {"study": "tiny", "share": 0.02, **predictors_document([], [])})
    cache = store.root / "cache" / "micro-batch"
    cache.mkdir(parents=True)
    write_document(cache / "0123456789abcdef.json", {"fits": 4, "too_many": None, "of": {}})
    return place


File = Callable[[Place], Path]


def of_run(run: str, name: str) -> File:
    """A file of one of the runs that a place names."""
    return lambda place: next((place.store / getattr(place, run)).glob(name))


def in_store(pattern: str) -> File:
    return lambda place: sorted(place.store.glob(pattern))[0]


def newest_in_store(pattern: str) -> File:
    """The file of this version: those of the archive are older, and their sources are not here."""
    return lambda place: max(place.store.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


@dataclass(frozen=True)
class Kind:
    """A kind of file: where one is, the verbs that read it, and whether it may be absent."""

    file: File
    verbs: tuple[str, ...]
    optional: bool = False
    json: bool = True
    sealed: bool = False
    """Whether a checksum or a fingerprint covers its content, so that an unknown field is damage as well."""
    foreign: bool = False
    """Whether its format is not Retain's."""


TINY_VERBS = ("status", "status tiny", "results tiny", "plan tiny", "why tiny", "export", "pin", "gc", "logs", "cancel")
KINDS: Mapping[str, Kind] = {
    "stage.json": Kind(of_run("trained", "stage.json"), (*TINY_VERBS, "report tiny")),
    "state.json": Kind(of_run("trained", "state.json"), (*TINY_VERBS, "report tiny", "retry tiny")),
    "losses.json": Kind(
        of_run("trained", "losses.json"),
        ("status tiny", "results tiny", "report tiny", "export", "why tiny"),
        sealed=True,
    ),
    "state.json of a linear run": Kind(of_run("done", "state.json"), ("run linear", "load")),
    "lease": Kind(of_run("done", "lease.9.json"), ("status linear", "gc"), optional=True),
    "curves.jsonl": Kind(of_run("done", "curves.jsonl"), ("status linear",), optional=True),
    "log.txt": Kind(of_run("trained", "log.txt"), ("logs", "status tiny"), optional=True, json=False),
    "weights": Kind(of_run("trained", "model/model.safetensors"), ("results tiny", "export", "gc"), json=False),
    "checkpoint": Kind(of_run("stopped", "checkpoint/*/state.json"), ("status tiny", "gc")),
    "checkpoint of a rank": Kind(of_run("stopped", "checkpoint/*/rank-00000.json"), ("status tiny", "gc")),
    "steps.json": Kind(of_run("trained", "steps.json"), ("status tiny", "results tiny"), optional=True),
    "adapted.json": Kind(of_run("stopped", "adapted.json"), ("status tiny", "retry"), optional=True),
    "prepared": Kind(newest_in_store("prepared/*.json"), ("status tiny", "results tiny", "plan tiny"), optional=True),
    "manifest.json": Kind(in_store("corpora/*/manifest.json"), ("status tiny", "results tiny", "plan tiny", "data")),
    "train.bin": Kind(in_store("corpora/*/train.bin"), ("status tiny", "results tiny", "data"), json=False),
    "tokenizer.json": Kind(in_store("tokenizers/*/tokenizer.json"), ("status tiny", "data"), sealed=True, foreign=True),
    "tokenizer_config.json": Kind(
        in_store("tokenizers/*/tokenizer_config.json"), ("status tiny", "data"), foreign=True
    ),
    "submission": Kind(in_store("submissions/*/intent.json"), ("status tiny", "cancel tiny"), optional=True),
    "backlog": Kind(in_store("submissions/deferred.json"), ("status tiny",), optional=True),
    "trials.json": Kind(in_store("studies/linear/trials.json"), ("load",), optional=True),
    "search.json": Kind(in_store("studies/linear/search.json"), ("status linear", "search linear"), optional=True),
    "search-summary.json": Kind(in_store("studies/linear/search-summary.json"), ("summary",), optional=True),
    "predictors.json": Kind(in_store("studies/tiny/predictors.json"), ("status tiny",), optional=True),
    "looks.json": Kind(in_store("studies/tiny/looks.json"), ("results tiny", "report tiny"), optional=True),
    "micro-batch": Kind(in_store("cache/micro-batch/*.json"), ("plan tiny",), optional=True),
}
FOLDER_OF_A_RUN = Kind(
    lambda place: place.store / place.trained, ("status", "status tiny", "results tiny", "gc"), json=False
)


def replaced(text: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(text(path.read_bytes()))

    return damage


def in_its_place(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return damage


def another_type(content: bytes) -> bytes:
    """The same document with a value of another type: its last field that is a number, text or list becomes a list of true."""
    first, *lines = content.decode().splitlines(keepends=True)
    by_line = first.rstrip().endswith("}")
    document = json.loads(first if by_line else content)
    if isinstance(document, list):
        document = [{"axes": 1}]
    else:
        name = next(
            name
            for name in ("fingerprint", "eos_token", "files", "sha256", "keys", "attempts", "splits", *document)
            if name in document
        )
        document[name] = [True]
    return b"".join([json.dumps(document).encode() + b"\n", *(line.encode() for line in lines if by_line)])


def unknown_field(content: bytes) -> bytes:
    """The same document with a field that this version does not know."""
    text = content.decode()
    return text.replace("{", '{"unheard-of": {"of": [1]}, ', 1).encode()


def newer(content: bytes) -> bytes:
    """The same document of a later format."""
    document = json.loads(content.splitlines()[0] if content.startswith(b'{"') else content)
    if isinstance(document, list):
        document = {"rows": document}
    return json.dumps({**document, "format": 99}).encode()


DAMAGES: Mapping[str, Callable[[Path], None]] = {
    "missing": in_its_place(lambda path: None),
    "empty": replaced(lambda content: b""),
    "truncated": replaced(lambda content: content[: len(content) // 2]),
    "null": replaced(lambda content: b"null"),
    "other type": replaced(another_type),
    "not text": replaced(lambda content: b"\xff\x00{" * 9),
    "unknown field": replaced(unknown_field),
    "newer format": replaced(newer),
    "folder": in_its_place(lambda path: path.mkdir()),
    "named pipe": in_its_place(os.mkfifo),
    "dangling link": in_its_place(lambda path: path.symlink_to("nowhere")),
}
OF_JSON = ("null", "other type", "unknown field", "newer format")


def damages_of(kind: Kind) -> list[str]:
    left_out = OF_JSON if not kind.json else ("newer format",) if kind.foreign else ()
    return [name for name in DAMAGES if name not in left_out]


def is_harmless(kind: Kind, damage: str) -> bool:
    """Whether the file may be as it is now, so that verbs may end in another way, and `verify` reports nothing."""
    if damage == "empty" and kind in (KINDS["lease"], KINDS["curves.jsonl"]):  # a released lease; no points yet
        return True
    if kind is KINDS["log.txt"] and damage in ("empty", "truncated", "not text"):
        return True
    return (damage == "missing" and kind.optional) or (damage == "unknown field" and not kind.sealed)


@dataclass(frozen=True)
class Ended:
    """How a verb ended."""

    code: int
    printed: str
    complained: str


def run_verb(words: str, place: Place) -> Ended:
    """Run a verb in this process, and return how it ended; an exception is code -1."""
    verb, _, study = words.partition(" ")
    named = {"linear": [str(place.linear)], "tiny": [str(place.tiny)], "": []}[study]
    if verb in ("export", "pin", "logs", "cancel", "retry") and not study:
        named = [place.stopped if verb == "retry" else place.trained]
    more = {
        "why": [place.trained],
        "data": [str(place.tiny)],
        "report": ["--json"],
        "export": ["--to", str(place.store.parent / f"{place.store.name}-exported")],
        "status": ["--json"],
        "results": ["--json"],
        "plan": ["--json"],
        "verify": ["--json"],
        "gc": ["--json", "--dry-run"],
    }.get(verb, [])
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            arguments = [verb, *named, *more, "--store", str(place.store)]
            code = _read(READERS[verb], place) if verb in READERS else main(arguments)
    except BaseException:
        code = -1
        err.write(traceback.format_exc())
    return Ended(code, _without_times(out.getvalue(), place), _without_times(err.getvalue(), place))


READERS: Mapping[str, Callable[[Place], Any]] = {
    "load": lambda place: retain.load("linear", place.store).to_csv(),
    "summary": lambda place: search_part(place.store, "linear"),
}
"""Readers that are no verbs, or a part of a slow one."""


def _read(read: Callable[[Place], Any], place: Place) -> int:
    try:
        print(read(place))
    except (RetainError, FileNotFoundError) as error:
        print(f"retain: {error}", file=sys.stderr)
        return 3
    return 0


def _without_times(text: str, place: Place) -> str:
    return re.sub(r"\d\d:\d\d:\d\d", "TIME", text.replace(str(place.store), "STORE"))


def judged(damaged: Ended, sound: Ended, path: Path, place: Place) -> str:
    """How a verb ended on damage: `as before`, or `named` with its exit code; what is wrong begins with !."""
    if damaged.code == -1 or "Traceback" in damaged.complained:
        return f"!traceback {damaged.complained[-900:]}"
    if damaged == sound:
        return "as before"
    said = damaged.printed + damaged.complained
    inside = path.relative_to(place.store)
    if any(part not in said for part in inside.parts[-2:]):
        return f"!hidden {damaged} instead of {sound}"
    refused = damaged.code in (2, 3)
    if refused and len(damaged.complained.strip().splitlines()) != 1:
        return f"!more than one sentence {damaged.complained}"
    return f"named ({damaged.code})"


def table_of(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Markdown: a row for each kind and damage, with how each verb ended."""
    cells: dict[tuple[str, str], list[str]] = {}
    for kind, damage, verb, how in rows:
        cells.setdefault((kind, damage), []).append(f"{verb}: {how}")
    lines = [f"| {kind} | {damage} | {'; '.join(how)} |" for (kind, damage), how in cells.items()]
    return "\n".join(["| file | damage | how the verbs ended |", "|---|---|---|", *lines])


def in_child(work: Callable[[], Any], user: int) -> Any:
    """The JSON value that `work` returns in a child process of another user, where this one may choose."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            text = json.dumps(work())
        except BaseException:
            text = json.dumps([["", "", "", f"!{traceback.format_exc()}"]])
        with os.fdopen(writer, "w") as stream:
            stream.write(text)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text)
