"""The states of many runs for readers: those of ended runs from an index of the store, all others from state.json.

`cache/states.txt` is a cache: state.json is the truth, and any process may delete the index at any time. An entry counts only
while state.json has the stamp (times, size, inode) that it had when it was read for the entry. One `stat` shows that; to open,
read, parse and check state.json takes ten times as long.

- Only ended runs have entries, and no younger ones than YOUNG_S: on a file system with coarse times, a file that is written
  twice in a moment may have one stamp for two contents.
- The index is replaced as a whole. Of two processes that write it at once, one loses its entries, which are then read again.
- A digest finds damage. A damaged index, one of another version, and one that cannot be read count as empty.
- The stamps of a copied store differ, so a copy reads its runs again.
- An NFS client may take its stamps from a cache for up to a minute, so a reader there may notice that much later that another
  machine has retried an ended run. That is why nobody who changes or starts runs reads states here.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from retain.results.store.index.entry import LAYOUT, Stamp, key_of, line_of, stamp_of, state_in
from retain.results.store.runs import STATE, Store
from retain.results.store.state import ENDED, State, StateSummary, damaged_state
from retain.sweeps.base.documents import parsed, read_bytes, read_bytes_and_status
from retain.sweeps.base.errors import DamageError
from retain.sweeps.base.files import file_system_time, write_bytes

INDEX = Path("cache") / "states.txt"
YOUNG_S = 3.0
"""The coarsest file systems keep times in steps of two seconds."""
WORTH_INDEXING = 200
"""The number of states to read that the index lacks before new entries are made."""
WORTH_WRITING = 0.1
"""The number of new entries, as a part of all, before the index is written again: that takes as long as reading a tenth."""


class StateReader:
    """Reads the states of runs of one store, again and again; what has not changed in between is not read twice.

    shows_damage: whether a run whose state cannot be read is DAMAGED; otherwise the first raises DamageError.
    """

    def __init__(self, store: Store, shows_damage: bool = False) -> None:
        self.store, self.root, self.shows_damage = store, str(store.root), shows_damage
        self._lines: dict[str, str] | None = None
        self._known: dict[str, tuple[Stamp, StateSummary]] = {}
        self._repeated: dict[bytes, State] = {}
        """The states of runs that have not begun, by the content of state.json, which many of them share."""

    def states(self, keys: Iterable[str]) -> dict[str, StateSummary]:
        """The state of each run, in the order of the keys; planned for one that is not registered. Raises DamageError."""
        if self._lines is None:
            self._lines = read_index(self.store)
        found: dict[str, StateSummary] = {}
        unread: list[str] = []
        for key in keys:
            state = self._from_index(key, self._lines)
            if state is None:
                unread.append(key)
            found[key] = state or _PLANNED  # keeps the order of the keys; `_read` replaces it
        if unread:
            self._read(unread, found, self._lines)
        return found

    def _from_index(self, key: str, lines: Mapping[str, str]) -> StateSummary | None:
        """The state of a run that had ended when state.json was last read; None if it has to be read."""
        known, line = self._known.get(key), lines.get(key)
        if known is None and line is None:
            return None
        try:
            status = os.stat(f"{self.root}/{key}/{STATE}")
        except OSError:
            return None
        if known is not None and known[0] == stamp_of(status):
            return known[1]
        if line is None or (state := state_in(line, key, status)) is None:
            return None
        self._known[key] = stamp_of(status), state
        return state

    def _read(self, keys: Sequence[str], found: dict[str, StateSummary], lines: dict[str, str]) -> None:
        """Read the states that the index lacks, and put those of ended runs into the index if they are many."""
        before = self._time() if len(keys) >= WORTH_INDEXING else None
        new = 0
        for key in keys:
            try:
                state, stamp = self._state(key, before)
            except DamageError as error:
                if not self.shows_damage:
                    raise
                found[key] = damaged_state(error)
                continue
            found[key] = state
            if stamp is not None and state.state in ENDED and (line := line_of(key, stamp, state)):
                lines[key] = line
                new += 1
        if new >= max(WORTH_INDEXING, WORTH_WRITING * len(lines)):
            write_index(self.store, lines)

    def _state(self, key: str, before: float | None) -> tuple[State, Stamp | None]:
        """`Run.state`, which parses content that several runs share only once; and the stamp for the index, from `_settled`."""
        path = f"{self.root}/{key}/{STATE}"
        try:
            content, status = read_bytes_and_status(path, "")
            if (state := self._repeated.get(content)) is None:
                state = parsed(content, State, path, "")
        except (FileNotFoundError, DamageError):
            # A run that is not registered, as most of a new study; or `Run.state` says what is wrong, and the cure.
            is_absent = not os.path.lexists(f"{self.root}/{key}")
            return (_PLANNED if is_absent else self.store.run(key).state()), None
        if not state.attempts:
            self._repeated[content] = state
        return state, None if before is None else _settled(status, before)

    def _time(self) -> float | None:
        """The time by the clock of the store's file system; None if the store can only be read, so that no index is written."""
        with contextlib.suppress(OSError):
            (self.store.root / INDEX.parent).mkdir(exist_ok=True)
            return file_system_time(self.store.root / INDEX.parent)
        return None


_PLANNED = State()


def shown_states(store: Store, keys: Iterable[str]) -> dict[str, StateSummary]:
    """The states of runs as readers show them, once. Raises DamageError."""
    return StateReader(store).states(keys)


def read_index(store: Store) -> dict[str, str]:
    """The lines of the index by key; empty if there is none, or it is damaged."""
    try:
        head, _, body = read_bytes(store.root / INDEX, "").partition(b"\n")
        if head != _header(body):
            return {}
        return {key_of(line): line for line in body.decode("ascii").splitlines()}
    except (FileNotFoundError, DamageError):
        return {}


def write_index(store: Store, lines: dict[str, str]) -> None:
    """Replace the index, without runs that are gone. A store that can only be read keeps the index that it has."""
    with contextlib.suppress(OSError, DamageError):
        present = set(os.listdir(store.root))
        body = "".join(f"{line}\n" for key, line in lines.items() if key in present).encode("ascii")
        # A crash of the machine may leave half of it, which the digest finds.
        write_bytes(store.root / INDEX, _header(body) + b"\n" + body, sync=False)


def _header(body: bytes) -> bytes:
    digest = hashlib.blake2b(LAYOUT.encode(), digest_size=16)
    digest.update(body)
    return f"retain states {digest.hexdigest()}".encode()


def _settled(status: os.stat_result, before: float) -> Stamp | None:
    """The stamp of a file that was last changed well before a time, if it was read after that time; None for others.

    A later change, at that time or after it, gives the file another stamp, however coarse the times are.
    """
    return stamp_of(status) if max(status.st_mtime, status.st_ctime) < before - YOUNG_S else None
