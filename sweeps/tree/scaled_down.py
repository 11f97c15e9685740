"""A study cut down to seconds: the same model, data and kinds of stages, a few steps and a few trials of each."""

from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.linear import LinearStudy
from retain.sweeps.schema.read import StudyFile, check_study
from retain.sweeps.tree.tree import STAGES, plain

STEPS = {"pretrain": 40, "posttrain": 60, "finetune": 30}
EVALUATE_EVERY = 20
SAVE_EVERY = 7
"""Steps; not a divisor of the others, so that states are saved beside evaluations and between them."""


def cut_down(file: StudyFile) -> StudyFile:
    """The first and last value of each axis, three at most of them, and stages of a few steps that save often."""
    if isinstance(file.study, LinearStudy):
        raise StudyError(
            f"{file.path.name}: a linear study's stages last a second and save no states; drill another study"
        )
    # Only what the study gives, so that what it leaves out stays left out.
    raw: dict[str, Any] = file.study.model_dump(exclude_unset=True, mode="json")
    length = min(file.values("sequence_length"))
    for stage in STAGES:
        section = raw[stage]
        batch = max(file.values(f"{stage}.batch"))
        section["tokens"] = STEPS[stage] * batch * length
        section["warmup"] = min(section.get("warmup", 0), STEPS[stage] // 4)
    post = raw["posttrain"]
    # Two passes, so that the second one's new order is part of what is tested.
    post["tokens"] //= 2
    if file.study.allocation == "additive":
        post["max_tokens"] = 2 * post["tokens"]
    if post.get("early_stopping"):
        post["early_stopping"] |= {"every": EVALUATE_EVERY}
    execution: dict[str, Any] = raw.get("execution", {})
    for part in (execution, *execution.get("stages", {}).values()):
        part.pop("heldout_every", None)
        part.pop("save_steps", None)
    raw["execution"] = execution | {"save_steps": SAVE_EVERY}
    raw["cases"] = {
        name: {case: kept for case in _ends(list(cases)) if (kept := _cut_case(cases[case]))}
        for name, cases in file.study.cases.items()
    }
    varied = [axis for axis in file.axes if not _is_size(axis)]
    raw["grid"] = {axis: [plain(value) for value in _ends(file.axes[axis])] for axis in varied[:3]}
    raw.pop("search", None)
    raw["study"] = f"{file.study.study}-drill"
    return check_study(raw, file.path)


def _cut_case(settings: dict[str, Any]) -> dict[str, Any]:
    """A case without the sizes that it sets, the last value of each list in it."""
    kept = {path: value for path, value in settings.items() if not _is_size(path)}
    return {path: value[-1] if isinstance(value, list) else value for path, value in kept.items()}


def _is_size(path: str) -> bool:
    return path.split(".")[-1] in ("tokens", "max_tokens", "warmup")


def _ends(values: list[Any]) -> list[Any]:
    return values[:1] if len(values) == 1 else [values[0], values[-1]]
