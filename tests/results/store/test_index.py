"""The index of a store: whatever happens to runs and to the index, readers see what each state.json says."""

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.results.store.index import states as index
from retain.results.store.index.entry import line_of, stamp_of, state_in
from retain.results.store.index.states import INDEX, StateReader, read_index, shown_states
from retain.results.store.runs import Run, Store
from retain.results.store.state import DAMAGED, ENDED, Attempt, Progress, State, StateSummary
from retain.results.store.status import StatusReader, study_status
from retain.sweeps.base.errors import DamageError
from retain.sweeps.base.files import write_text
from tests.results.runs import finish_all, put_state, registered
from tests.results.store.processes import next_line, start_python
from tests.users import MEMBER, give_to, needs_root

ROOT = Path(__file__).parents[3]
KEYS = [f"{number:020x}" for number in range(3)]
SHOWN = [field.name for field in dataclasses.fields(StateSummary)]
MAY_READ = {
    "launchers/planning/key_report.py",
    "results/store/status.py",
    "results/tensorboard/views.py",
    "launchers/planning/plan.py",
    "launchers/cli/train.py",
    "launchers/cli/views/submission.py",
}
"""What only shows states. Whoever changes or starts a run has to read its state.json."""


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """An index of any number of runs that have ended a moment ago."""
    with mock.patch.multiple(index, WORTH_INDEXING=1, YOUNG_S=0.0):
        yield


def shown(state: StateSummary) -> list[object]:
    return [getattr(state, name) for name in SHOWN]


def direct(store: Store, keys: Sequence[str]) -> dict[str, list[object]]:
    """What each state.json says."""
    found = {}
    for key in keys:
        try:
            found[key] = shown(store.run(key).state())
        except DamageError as error:
            found[key] = shown(State(state=DAMAGED, reason=str(error)))
    return found


def as_read(reader: StateReader, keys: Sequence[str] = KEYS) -> dict[str, list[object]]:
    return {key: shown(state) for key, state in reader.states(keys).items()}


def ended(number: int, state: str = "done") -> State:
    attempt = Attempt(
        1795956291.02 + number, "a-host", 17, end=1795956292.0, tokens=256, cause="finished", device="cpu"
    )
    progress = Progress(256, 256, 2.0, 9000.0)
    return State(state, (attempt,), progress=progress, checksums={"losses.json": "0" * 64}, reason=f"reason {number}")


def store_of(root: Path, count: int = 3, state: str = "done") -> tuple[Store, list[str]]:
    """A store of ended runs that were written a moment ago."""
    keys = [f"{number:020x}" for number in range(count)]
    for number, key in enumerate(keys):
        (root / key).mkdir(parents=True)
        put_state(Run(root / key), ended(number, state))
    time.sleep(0.02)
    return Store(root), keys


def settle() -> None:
    """Wait until the clock of the file system has moved on."""
    time.sleep(0.011)


def edit_in_place(run: Run) -> None:
    """As an editor that does not replace the file: same inode, and perhaps the same size."""
    if (path := run.folder / "state.json").is_file():
        text = path.read_text().replace('"reason": "', '"reason": "X')
        with path.open("r+") as stream:
            stream.write(text)


def replace_by_another(run: Run) -> None:
    """As a copy that keeps the times of the file."""
    other = run.folder.with_name(KEYS[0]) / "state.json"
    if other.is_file() and run.key != KEYS[0] and run.folder.is_dir():
        shutil.copy2(other, run.folder / "state.json")


ACTIONS: dict[str, Callable[[Run], object]] = {
    "begin": lambda run: run.begin(pid=1, tokens=7),
    "report": lambda run: run.report(Progress(5, 10, 1.5, 3.0)),
    "fail": lambda run: run.fail("it broke \udcff", "bug"),
    "cancel": lambda run: run.cancel("by retain cancel"),
    "skip": lambda run: run.skip("its parent failed"),
    "finish": lambda run: run.finish(None, {"losses.json": {"splits": {}}}),
    "retry": lambda run: run.retry(),
    "reopen": lambda run: run.retry(reopen=True),
    "free": lambda run: run.free_weights(lambda name: False),
    "delete": lambda run: shutil.rmtree(run.folder, ignore_errors=True),
    "damage": lambda run: write_text(run.folder / "state.json", "{"),
    "end": lambda run: put_state(run, ended(1)),
    "edit": edit_in_place,
    "copy": replace_by_another,
    "another version": lambda run: put_state(
        run, dataclasses.replace(ended(2), attempts=(Attempt(1.0, "h", 1, unknown={"new": 1}),), unknown={"newer": [1]})
    ),
    "endless number": lambda run: write_text(run.folder / "state.json", '{"state": "failed", "heartbeat": 1e999}'),
    "delete the index": lambda run: (run.folder.parent / INDEX).unlink(missing_ok=True),
    "damage the index": lambda run: damage_index(run.folder.parent),
}


def damage_index(root: Path) -> None:
    if (path := root / INDEX).exists():
        content = bytearray(path.read_bytes())
        content[len(content) * 2 // 3] ^= 1
        path.write_bytes(bytes(content))


@settings(deadline=None, max_examples=50)
@given(steps=st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(sorted(ACTIONS)), st.booleans()), max_size=14))
def test_after_any_changes_readers_see_what_state_json_says(steps: list[tuple[str, str, bool]]) -> None:
    with eager(), tempfile.TemporaryDirectory() as place:
        store = Store(Path(place))
        lasting = StateReader(store, shows_damage=True)
        for key, action, looks in steps:
            store.run(key).folder.mkdir(exist_ok=True)
            with contextlib.suppress(DamageError, ValueError):  # an endless number is not written again
                ACTIONS[action](store.run(key))
            if looks:
                settle()
                assert as_read(lasting) == direct(store, KEYS)
                assert as_read(StateReader(store, shows_damage=True)) == direct(store, KEYS)
        assert as_read(lasting) == as_read(StateReader(store, shows_damage=True)) == direct(store, KEYS)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(ENDED), st.text(), st.lists(st.text(), max_size=2), st.floats(allow_nan=False, allow_infinity=False)
)
def test_a_line_of_the_index_keeps_every_shown_field(state: str, text: str, jobs: list[str], number: float) -> None:
    attempts = (
        Attempt(number, text, 3, "12", 2, 5, number, 8, text, text, "bug", text, number, "bf16, compiled"),
        Attempt(1.0, "host", 4),
    )
    progress = Progress(1, 2, number, 3.5, "writing", number)
    written = State(state, attempts, tuple(jobs), number, progress, text, 1, True)
    line = line_of(KEYS[1], (1, 2, 3, 4), written)
    assert line is not None
    assert "\n" not in line
    stamp = {"st_mtime_ns": 1, "st_ctime_ns": 2, "st_size": 3, "st_ino": 4}
    found = state_in(line, KEYS[1], mock.Mock(**stamp))
    assert found is not None
    assert shown(found) == shown(written)
    assert found.counted_attempts == attempts[1:]
    for name in stamp:
        assert state_in(line, KEYS[1], mock.Mock(**stamp | {name: 9})) is None


def test_the_index_is_read_instead_of_state_json(tmp_path: Path) -> None:
    store, keys = store_of(tmp_path)
    with eager():
        before = as_read(StateReader(store), keys)
        with mock.patch.object(index, "parsed", side_effect=AssertionError("a state.json was parsed")):
            assert as_read(StateReader(store), keys) == before == direct(store, keys)


def test_an_unended_run_and_one_that_has_just_ended_have_no_entry(tmp_path: Path) -> None:
    store, keys = store_of(tmp_path)
    put_state(store.run(keys[0]), State("running", ended(0).attempts))
    put_state(store.run(keys[1]), State("queued", submission="token"))
    settle()
    with eager():
        shown_states(store, keys)
        assert list(read_index(store)) == [keys[2]]
        (store.root / INDEX).unlink()
        with mock.patch.object(index, "YOUNG_S", 3.0):
            shown_states(store, keys)
        assert not (store.root / INDEX).exists()


@pytest.mark.parametrize("change", ["edit", "fail", "reopen", "delete"])
def test_a_state_that_changes_between_two_looks_at_its_file_is_read_again(tmp_path: Path, change: str) -> None:
    store, keys = store_of(tmp_path, 3, "failed" if change == "reopen" else "running")

    def read(path: str, cure: str) -> tuple[bytes, os.stat_result]:
        status, content = os.stat(path), Path(path).read_bytes()
        settle()
        ACTIONS[change](Run(Path(path).parent))
        return (Path(path).read_bytes() if change == "edit" else content), status

    with eager():
        with mock.patch.object(index, "read_bytes_and_status", read):
            shown_states(store, keys)
        for _ in range(2):
            assert as_read(StateReader(store), keys) == direct(store, keys)


def test_few_runs_are_read_without_an_index_and_many_with_one(tmp_path: Path) -> None:
    few, keys = store_of(tmp_path / "few", 20)
    with mock.patch.object(index, "YOUNG_S", 0.0):
        shown_states(few, keys)
        assert not (few.root / "cache").exists()
        many, keys = store_of(tmp_path / "many", index.WORTH_INDEXING)
        shown_states(many, keys)
    assert list(read_index(many)) == keys
    assert as_read(StateReader(many), keys) == direct(many, keys)


def test_a_damaged_index_counts_as_none_and_is_replaced(tmp_path: Path) -> None:
    store, keys = store_of(tmp_path)
    with eager():
        shown_states(store, keys)
        path = store.root / INDEX
        whole = path.read_bytes()
        assert len(read_index(store)) == 3
        versions = [
            whole.replace(b"retain states", b"retain states2"),
            whole[:-9],
            whole[:40],
            b"",
            b"\xff" * 90,
            whole + b"x",
        ]
        for content in versions:
            path.write_bytes(content)
            assert read_index(store) == {}
            assert as_read(StateReader(store), keys) == direct(store, keys)
            assert path.read_bytes() == whole
        path.unlink()
        for make in (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("nothing")):
            make()
            assert as_read(StateReader(store), keys) == direct(store, keys)
            path.rmdir() if path.is_dir() else path.unlink()


def test_an_index_of_another_layout_counts_as_none(tmp_path: Path) -> None:
    store, keys = store_of(tmp_path)
    with eager():
        with mock.patch.object(index, "LAYOUT", "of another version"):
            shown_states(store, keys)
        assert (store.root / INDEX).exists()
        assert read_index(store) == {}
        assert as_read(StateReader(store), keys) == direct(store, keys)


def test_a_copied_store_reads_its_own_runs(tmp_path: Path) -> None:
    store, keys = store_of(tmp_path / "one")
    with eager():
        shown_states(store, keys)
        copy = Store(shutil.copytree(tmp_path / "one", tmp_path / "two"))  # keeps the times of the files
        put_state(store.run(keys[0]), ended(7, "failed"))
        shutil.copy2(store.run(keys[0]).folder / "state.json", copy.run(keys[0]).folder)
        settle()
        assert as_read(StateReader(copy), keys) == direct(copy, keys) == direct(store, keys)


def test_runs_that_are_deleted_leave_the_index_when_it_is_written_next(tmp_path: Path) -> None:
    store, keys = store_of(tmp_path, 4)
    with eager():
        shown_states(store, keys[:2])
        shutil.rmtree(store.run(keys[0]).folder)
        assert shown_states(store, keys[:1]) == {keys[0]: State()}
        shown_states(store, keys[2:])
        assert list(read_index(store)) == keys[1:]


def test_the_index_of_a_study_keeps_what_is_known_of_other_studies(tmp_path: Path) -> None:
    store, keys = store_of(tmp_path, 4)
    with eager():
        shown_states(store, keys[:2])
        shown_states(store, keys[2:])
    assert list(read_index(store)) == keys


@needs_root
def test_a_store_that_may_only_be_read_is_read_without_and_with_an_index(tmp_path: Path) -> None:
    store, keys = store_of(tmp_path / "runs", 3)
    program = f"""
import sys
from pathlib import Path
from retain.results.store.index import states as index
index.WORTH_INDEXING, index.YOUNG_S = 1, 0.0
from retain.results.store.runs import Store
print([state.reason for state in index.shown_states(Store(Path({str(store.root)!r})), {keys!r}).values()])
"""
    for path in (tmp_path, *tmp_path.parents):
        path.chmod(path.stat().st_mode | 0o055)
    give_to(42_420, store.root)
    expected = str([f"reason {number}" for number in range(3)])
    for is_indexed in (False, True):
        if is_indexed:
            with eager():
                shown_states(store, keys)
        before = sorted(store.root.rglob("*"))
        printed = retain_python(program)
        assert (printed, sorted(store.root.rglob("*"))) == (expected, before)
        assert (store.root / INDEX).exists() == is_indexed


def retain_python(program: str) -> str:
    """What a Python program prints as a user who may not write the store."""
    done = subprocess.run([*MEMBER, sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


READER = """
import sys
from pathlib import Path
from retain.results.store.index import states as index
index.WORTH_INDEXING, index.WORTH_WRITING, index.YOUNG_S = 1, 0.0, 0.0
from retain.results.store.runs import Store
store, keys = Store(Path(sys.argv[1])), sys.argv[2:]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(60):
    for state in index.StateReader(store).states(keys).values():
        assert (state.state == "failed") == (state.reason == "it broke"), state
print("passed", flush=True)
"""


def test_processes_that_read_write_and_index_at_once_never_see_a_wrong_state(tmp_path: Path) -> None:
    store, keys = store_of(tmp_path, 12)
    readers = [start_python(READER, store.root, *keys) for _ in range(3)]
    assert [next_line(reader) for reader in readers] == ["ready"] * 3
    for reader in readers:
        assert reader.stdin
        reader.stdin.write("\n")
        reader.stdin.flush()
    number = 0
    while any(reader.poll() is None for reader in readers):
        run = store.run(keys[number % len(keys)])
        run.retry(reopen=True)
        if number % 3:
            run.fail("it broke")
        number += 1
    assert [next_line(reader) for reader in readers] == ["passed"] * 3
    settle()
    with eager():
        assert as_read(StateReader(store), keys) == direct(store, keys)
        assert as_read(StateReader(store), keys) == direct(store, keys)


def test_a_status_that_is_read_again_and_again_shows_every_change(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    finish_all(tree, store)
    settle()
    with eager():
        reader = StatusReader(store)
        first, rows = reader.of_study(tree), reader.of_study(tree)
        assert first == rows
        assert {row.state for row in rows} == {"done"}
        assert all(row is again for row, again in zip(rows, reader.of_study(tree), strict=True))
        run = store.run(rows[-1].key)
        assert run.retry(reopen=True)
        assert reader.of_study(tree)[-1].state == "planned"
        assert run.fail("it broke")
        assert (reader.of_study(tree)[-1].state, reader.of_study(tree)[-1].reason) == ("failed", "it broke")
        assert reader.of_study(tree) == study_status(tree, store)


def test_only_readers_that_show_states_read_the_index() -> None:
    rooms = [ROOT / name for name in ("launchers", "results", "retain", "datamodules", "lightning_modules", "sweeps")]
    files = [path for room in rooms for path in room.rglob("*.py") if path.parent.name != "index"]
    found = {str(path.relative_to(ROOT)) for path in files if re.search(r"store\.index\b", path.read_text())}
    assert found == MAY_READ


def test_the_stamp_of_a_replaced_file_differs_even_if_its_times_and_size_are_kept(tmp_path: Path) -> None:
    store, (key,) = store_of(tmp_path, 1)
    path = store.run(key).folder / "state.json"
    before = os.stat(path)
    write_text(path, path.read_text().replace("reason 0", "reason 9"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stamp_of(os.stat(path)) != stamp_of(before)
