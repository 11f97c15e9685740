"""`retain why`: the fields that make a stage key, and the differences between two keys."""

import json
from typing import Any

from retain.launchers.planning.evaluations import with_evaluations
from retain.launchers.planning.opened_study import OpenedStudy
from retain.launchers.planning.register import stage_spec
from retain.results.store.runs import Store
from retain.sweeps.base.errors import StudyError
from retain.sweeps.tree.key_diff import Payload, differences, nearest, path_fields, stage_name


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
    return {
        "key": key,
        "stage": stage_name(path[-1]),
        "parent": path[-1]["parent"],
        "payload": {name: path[-1][name] for name in ("format", "parent", "recipe", "stage")},
        "fields": path_fields(path),
        "compared_with": compared,
        "differences": [vars(difference) for difference in split],
    }


class _Paths:
    """The payloads from the root to a stage, for stages of the study and runs of the store."""

    def __init__(self, opened: OpenedStudy) -> None:
        self.payloads: dict[str, Payload] = {
            stage.key: stage_spec(stage, json.loads(stage.recipe)) for stage in with_evaluations(opened).stages.values()
        }
        self.study = set(self.payloads)
        self.store: Store = opened.store
        self.stored = opened.store.read_all(lambda run: run.spec()).keys()

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
        """The payloads on the path to a stage, root first."""
        if key not in self.payloads:
            self.payloads[key] = self.store.run(key).spec()
        payload = self.payloads[key]
        return [*(self.of(payload["parent"]) if payload["parent"] else []), payload]

    def candidates(self, key: str, stage: str) -> dict[str, list[Payload]]:
        """The other runs of this stage in the store; if there are none, the other ones in the study."""
        for keys in (self.stored, self.study):
            if found := {
                other: self.of(other) for other in keys if other != key and self.of(other)[-1]["stage"] == stage
            }:
                return found
        return {}
