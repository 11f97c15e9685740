"""A small copy of a study for the drill: the same model, data and kinds of stages, with few steps and few trials."""

from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.read import StudyFile, check_study
from retain.sweeps.tree.tree import plain_value

STEPS = {"pretrain": 40, "posttrain": 60}
FURTHER_STEPS = 30
"""The steps of a fine-tuning and of every further stage."""
EVALUATE_EVERY = 20
"""Steps between the evaluations of early stopping."""
SAVE_EVERY = 7
"""Steps between checkpoints. It does not divide the other numbers, so checkpoints fall both on and between evaluations."""
MAX_GRID_AXES = 3
FISHER_SEQUENCES = 16
"""The most sequences that the Fisher information of an anchor is estimated on. No short stage has fewer than the study has."""
ESTIMATED = ".anchor.sequences"
DECAY = 0.5
"""The share of a short stage that decays under the schedule `wsd`: a share of a long one may be less than a step here."""


def scale_down(file: StudyFile) -> StudyFile:
    """A copy with short stages that save often, and with the first and last value of each axis (of three grid axes at most).

    Raises StudyError for a linear study, which saves no checkpoints.
    """
    if isinstance(file.study, LinearStudy):
        raise StudyError(
            f"{file.path.name}: a linear study saves no checkpoints that a drill could test; drill another study"
        )
    # Fields that the study leaves out stay out, so that the copy follows the same defaults.
    raw: dict[str, Any] = file.study.model_dump(exclude_unset=True, mode="json")
    _shorten_stages(raw, file, file.study.allocation)
    execution: dict[str, Any] = raw.get("execution", {})
    for part in (execution, *execution.get("stages", {}).values()):
        part.pop("heldout_every", None)
        part.pop("save_steps", None)
    raw["execution"] = execution | {"save_steps": SAVE_EVERY}
    raw["cases"] = {
        name: {case: kept for case in _ends(list(cases)) if (kept := _scaled_case(cases[case]))}
        for name, cases in file.study.cases.items()
    }
    varied = [axis for axis in file.axes if not _is_size(axis)]
    chosen = {axis: _ends(file.axes[axis]) for axis in varied[:MAX_GRID_AXES]}
    raw["grid"] = {axis: [_fitting(axis, value) for value in values] for axis, values in chosen.items()}
    for axis in (axis for axis in raw["grid"] if axis.endswith(ESTIMATED)):
        raw["grid"][axis] = list(dict.fromkeys(raw["grid"][axis]))
    raw.pop("search", None)
    raw["study"] = f"{file.study.study}-drill"
    return check_study(raw, file.path)


def _shorten_stages(raw: dict[str, Any], file: StudyFile, allocation: str) -> None:
    """Give every stage of a study's plain mapping the tokens of a few steps."""
    length = min(file.values("sequence_length"))
    for stage in file.study.stages:
        section, own = raw[stage], max(file.values(f"{stage}.tokens"))
        sequences = STEPS.get(stage, FURTHER_STEPS) * max(file.values(f"{stage}.batch"))
        repeated = section.pop("passes", 1) > 1 or section.pop("max_tokens", None) is not None
        # Never more of a corpus than the study takes: the corpus may have no more. Two passes or more where the study may
        # have them, so that the drill also covers the new order of a pass.
        if stage == "posttrain" or repeated:
            tokens = min(sequences * length // 2, own)
            if stage in ("pretrain", "finetune"):
                section["passes"] = sequences * length // tokens
            elif stage != "posttrain" or allocation == "additive":
                section["max_tokens"] = sequences * length
            else:
                sequences = tokens // length
        else:
            tokens = min(sequences * length, own)
            sequences = tokens // length
        section["tokens"] = tokens
        for listed in section.get("mix", {}).values():
            for component in listed if isinstance(listed, list) else [listed]:
                _scale_component(component, min(1.0, sequences * length / own), sequences, length)
        steps = sequences // max(file.values(f"{stage}.batch"))
        section["warmup"] = min(section.get("warmup", 0), steps // 4)
        if isinstance(section.get("schedule"), dict):
            section["schedule"] = {"wsd": DECAY}
        if section.get("skip"):
            section["skip"] = min(getattr(file.study, stage).skip, tokens)
        if (section.get("anchor") or {}).get("sequences"):
            section["anchor"]["sequences"] = min(section["anchor"]["sequences"], FISHER_SEQUENCES)
        if section.get("early_stopping"):
            section["early_stopping"] |= {"every": EVALUATE_EVERY}


def _scale_component(component: dict[str, Any], scale: float, sequences: int, length: int) -> None:
    """Scale the sizes of a component of a stage's mixture; an amount above 0 stays at least one sequence of the stage's."""
    for name in ("tokens", "of", "skip"):
        if component.get(name):
            component[name] = max(length, int(component[name] * scale))
    if component.get("share"):
        component["share"] = max(component["share"], 1 / sequences)
    if component.get("passes"):
        component["passes"] = max(component["passes"], length / component["of"])


def _scaled_case(settings: dict[str, Any]) -> dict[str, Any]:
    """A case without its sizes, and with the last value of each list in it."""
    kept = {path: value for path, value in settings.items() if not _is_size(path)}
    return {path: _fitting(path, value[-1] if isinstance(value, list) else value) for path, value in kept.items()}


def _fitting(path: str, value: Any) -> Any:
    """A value of a field as a plain one that fits a short stage."""
    plain = plain_value(value)
    if path.endswith(ESTIMATED):
        return min(plain, FISHER_SEQUENCES)
    if path.endswith(".anchor") and (plain or {}).get("sequences"):
        return plain | {"sequences": min(plain["sequences"], FISHER_SEQUENCES)}
    return {"wsd": DECAY} if isinstance(plain, dict) and "wsd" in plain else plain


def _is_size(path: str) -> bool:
    names = path.split(".")
    of_mixture = len(names) > 1 and names[1] == "mix" and names[-1] not in ("share", "window", "replaces")
    return of_mixture or names[-1] in ("tokens", "max_tokens", "passes", "skip", "warmup", "wsd")


def _ends(values: list[Any]) -> list[Any]:
    return values[:1] if len(values) == 1 else [values[0], values[-1]]
