"""`retain why`: the fields that make a stage key, the differences between two keys, and what an edit of a study has changed."""

import contextlib
import json
import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from retain.launchers.planning.evaluations import with_evaluations
from retain.launchers.planning.opened_study import OpenedStudy
from retain.launchers.planning.register import stage_spec
from retain.results.store.index.states import StateReader
from retain.results.store.runs import Store
from retain.sweeps.base.errors import DamageError, StudyError
from retain.sweeps.base.notices import notice
from retain.sweeps.base.redaction import redacted_values
from retain.sweeps.base.units import counted
from retain.sweeps.schema.section import GROUNDWORK, shown_value
from retain.sweeps.tree.key_diff import ABSENT, Payload, differences, nearest, path_fields, stage_name

MOST_OTHERS = 5_000
"""The most runs outside a study that are read to find what an edit has changed."""
MOST_FIELDS = 3
"""The most fields that are named as changed; `retain why` has all."""


def why_document(opened: OpenedStudy, prefix: str, other: str | None) -> dict[str, Any]:
    """The fields of a key, and its differences from `other`, or else from the most similar run in the store.

    Keys may be shortened; they are looked up in the study, then in the store. Raises StudyError for an unknown key.
    """
    paths = _Paths(opened)
    key = paths.find(prefix)
    path = paths.of(key)
    stage = path[-1]["stage"]
    if other is not None:
        compared: str | None = paths.find(other)
        assert compared is not None
        split = differences(path, paths.of(compared))
    else:
        compared, split = nearest(path, paths.candidates(key, stage)) or (None, [])
    document = {
        "key": key,
        "stage": stage_name(path[-1]),
        "parent": path[-1]["parent"],
        "payload": {name: path[-1][name] for name in ("format", "parent", "recipe", "stage")},
        "fields": path_fields(path),
        "compared_with": compared,
        "differences": [vars(difference) for difference in split],
    }
    # A run that prepares a corpus names its URLs.
    return {name: redacted_values(value) for name, value in document.items()}


class _Paths:
    """The payloads from the root to a stage, for stages of the study and runs of the store."""

    def __init__(self, opened: OpenedStudy) -> None:
        self.payloads: dict[str, Payload] = {
            stage.key: stage_spec(stage, json.loads(stage.recipe)) for stage in with_evaluations(opened).stages.values()
        }
        self.study = set(self.payloads)
        self.store: Store = opened.store

    @cached_property
    def stored(self) -> set[str]:
        """The keys of the runs of the store."""
        return set(self.store.read_all(lambda run: run.spec()))

    def find(self, prefix: str) -> str:
        found = {key for key in self.study if key.startswith(prefix)} or {
            key for key in self.stored if key.startswith(prefix)
        }
        if len(found) == 1:
            return found.pop()
        if found:
            raise StudyError(f"{prefix}: {len(found)} stage keys begin with this; give more digits")
        raise StudyError(
            f"{prefix}: stage key not found in the study or in {self.store.root}; "
            "give the first digits of a key that status shows"
        )

    def of(self, key: str) -> list[Payload]:
        """The payloads on the path to a stage, root first. Raises StudyError if a run above it is gone, DamageError."""
        if key not in self.payloads:
            try:
                self.payloads[key] = self.store.run(key).spec()
            except FileNotFoundError:
                raise StudyError(
                    f"{key}: this run is gone from {self.store.root}, and with it what the runs below it were trained from; "
                    "name a stage above which nothing is missing"
                ) from None
        payload = self.payloads[key]
        return [*(self.of(payload["parent"]) if payload["parent"] else []), payload]

    def candidates(self, key: str, stage: str) -> dict[str, list[Payload]]:
        """The other runs of this stage in the store whose paths can be read; if there are none, the other ones in the study."""
        for keys in (self.stored, self.study):
            found = {}
            for other in keys - {key}:
                with contextlib.suppress(StudyError, DamageError):
                    found[other] = self.of(other)
            if alike := {other: path for other, path in found.items() if path[-1]["stage"] == stage}:
                return alike
        return {}


def tell_edit(opened: OpenedStudy, overrides: Sequence[str]) -> str | None:
    """Say on standard error what `edit_note` finds, and return it, unless there are overrides: a user means those."""
    note = None if overrides else edit_note(opened)
    if note:
        notice(note)
    return note


def edit_note(opened: OpenedStudy) -> str | None:
    """One sentence on stages to train that the store has under the same axes with another recipe; None if there are none.

    So an edit that trains a study again is seen before it does. A stage is known by the names of its study and its own, and by
    its axes; of several, the one that was trained last counts. Says nothing while the data is not prepared, as keys are
    provisional then.
    """
    if not (trained := _trained_otherwise(opened)):
        return None
    paths = _Paths(opened)
    key = max(trained, key=lambda one: len(paths.of(one)))
    now, before = paths.of(key), _trained_path(opened.store, trained[key])
    if before and before[0]["parent"]:  # the runs above are gone, and nothing is known of their fields
        now = now[-len(before) :]
    changed = [
        f"{one.field} was {_field_text(one.there)} and is now {_field_text(one.here)}"
        for one in differences(now, before)
    ]
    fields = ", ".join(changed[:MOST_FIELDS]) or "of a stage above, whose run is gone"
    if len(changed) > MOST_FIELDS:
        fields += f", and {counted(len(changed) - MOST_FIELDS, 'more field')}"
    compare = shlex.join(["retain", "why", opened.name, key[:8], trained[key][:8], "--store", str(opened.store.root)])
    return (
        f"{opened.file.path.name}: {len(trained):,} of the stages to train {'was' if len(trained) == 1 else 'were'} trained "
        f"before with another recipe ({fields}); if this is unintended, undo the edit; {compare} compares the two"
    )


def _field_text(value: Any) -> str:
    return ABSENT if value == ABSENT else shown_value(value)


def _trained_otherwise(opened: OpenedStudy) -> dict[str, str]:
    """The done run of another recipe, by the key of the stage to train that has its names and axes.

    Runs that cannot be read are left out: `status` and `verify` name them.
    """
    tree, others = opened.tree, opened.store.runs(but=opened.tree.stages)
    if tree.provisional or not 0 < len(others) <= MOST_OTHERS:
        return {}
    states = StateReader(opened.store, shows_damage=True).states(tree.stages)
    waiting = {
        _identity(stage.stage, stage.axes): key
        for key, stage in tree.stages.items()
        if states[key].state != "done" and stage.stage not in GROUNDWORK
    }
    latest: dict[str, tuple[float, str]] = {}
    for run in others if waiting else []:
        with contextlib.suppress(DamageError, FileNotFoundError):
            spec = run.spec()
            key = waiting.get(_identity(stage_name(spec), spec["axes"])) if spec.get("study") == tree.study else None
            if key is not None and (state := run.state()).state == "done":
                end = max((attempt.end or attempt.start for attempt in state.attempts), default=0.0)
                latest[key] = max(latest.get(key, (end, run.key)), (end, run.key))
    return {key: latest[key][1] for key in waiting.values() if key in latest}


def _identity(name: str, axes: Mapping[str, Any]) -> str:
    return json.dumps([name, axes], sort_keys=True)


def _trained_path(store: Store, key: str) -> list[Payload]:
    """The payloads on the path to a run of a store, root first; those above it may be gone."""
    try:
        spec = store.run(key).spec()
    except (DamageError, FileNotFoundError):
        return []
    return [*(_trained_path(store, spec["parent"]) if spec["parent"] else []), spec]
