"""What one study, or several together, would train and cost."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from retain.datamodules.corpora.parts.speed import MODELLED, measured_speed
from retain.launchers.planning.data_room import DataRoom, bytes_of_token, data_room
from retain.launchers.planning.defaults import planned_defaults
from retain.launchers.planning.evaluations import PlannedEvaluations, planned_evaluations
from retain.launchers.planning.key_report import edit_note
from retain.launchers.planning.looks import schedule, seeds_override
from retain.launchers.planning.opened_study import OpenedStudy, check_loggers, open_study
from retain.results.analysis.throughput import measured_speeds
from retain.results.store.garbage import check_starts
from retain.results.store.index.states import shown_states
from retain.results.store.runs import open_store
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.base.units import counted, format_bytes
from retain.sweeps.schema.read import StudyFile, read_study
from retain.sweeps.schema.section import GROUNDWORK, REFERENCE
from retain.sweeps.schema.study import Study
from retain.sweeps.tree.cost import Parallelism, Totals, total_cost
from retain.sweeps.tree.data_facts import CorpusFacts, Facts
from retain.sweeps.tree.merged import merged
from retain.sweeps.tree.recipes.preference import PAIR
from retain.sweeps.tree.tree import Axes, Stage


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan."""

    key: str
    """The stage key; provisional while data is not prepared."""
    stage: str
    """The name of the stage, such as pretrain."""
    parent: str | None
    """The key of the parent stage; None for the first stage."""
    axes: Axes
    """The values of the axes that lead to this stage."""
    tokens: int
    """The tokens to train on; an upper bound, as early stopping may end the stage sooner."""
    state: str
    """The state of its run in the store; planned if there is none."""


@dataclass(frozen=True)
class PlannedStudy:
    """One study of a plan."""

    name: str
    """As the caller named it: a study of Retain, or the path of a file."""
    study: str
    """The name in the study file."""
    axes: dict[str, int]
    """The number of values on each axis, cases included."""
    provisional: bool
    """True while its data is not prepared: its keys will change."""
    looks: list[int]
    """The number of seeds at each look at its verdicts, if seeds are added until they are decided; empty for a fixed sample."""


@dataclass(frozen=True)
class PlanTotals(Totals):
    """The totals of the tree, and the data that it reads; `disk_peak_bytes` includes the data."""

    data_bytes: int = 0
    """Bytes of the packed corpora."""
    download_bytes: int = 0
    """Bytes of copies of data sets of the hub in the store, for corpora that are not prepared; `retain gc` frees them then."""
    parts_bytes: int = 0
    """Bytes of the parts of large corpora that are not prepared; `retain gc` frees them once the corpora are."""
    preparation_tokens: int = 0
    """Tokens of the corpora that are not prepared, estimated from the bytes of their sources."""
    preparation_sized_by: list[str] = field(default_factory=list)
    """Those of these corpora whose bytes per token are known from parts in this store; four bytes are a token of the others."""
    preparation_core_hours: float = 0.0
    """Hours of one core that reading and encoding them takes."""
    preparation_speed: float = 0.0
    """Tokens per second and core, for which these hours are calculated."""
    preparation_measured: bool = False
    """Whether this speed is that of parts that were prepared in this store; otherwise it is modelled."""


@dataclass(frozen=True)
class DiskItem:
    """Something of a study that takes disk."""

    what: str
    """What it is, in words."""
    bytes: int
    """The bytes that it takes."""
    freed: str
    """When it is freed, and by what; never, if only a user who deletes the store does."""


@dataclass(frozen=True)
class Plan:
    """What `retain plan --json` prints."""

    study: str
    """The names of all planned studies, joined by +."""
    provisional: bool
    """True while data is not prepared: the keys will change."""
    device: str
    """The GPU of `totals.gpu_hours`."""
    studies: list[PlannedStudy]
    """The studies that are planned together."""
    chain: list[str]
    """The names of the stages in the order in which a trial trains them."""
    stages: list[PlannedStage]
    """Parents first; a stage that several studies share occurs once."""
    totals: PlanTotals
    """The cost of all stages together."""
    notes: list[str]
    """What a reader should know before training, one sentence each: unused corpora, and what a stage lacks to start from."""
    evaluations: PlannedEvaluations
    """The evaluation runs, which train nothing, and their cost, which `totals` does not include."""
    disk: list[DiskItem]
    """What takes the bytes of `totals.disk_peak_bytes`, and when each is freed."""
    defaults: list[str]
    """What the study leaves to the machine, with the reasons: precision and compilation, on CPUs as measured on this kind of
    processor (stages for which the same holds share a sentence), the devices, and the number of stages at a time."""


def plan_studies(
    names: Sequence[str],
    overrides: Sequence[str],
    store: Path,
    device: str,
    most: int | None = None,
    block: int | None = None,
) -> Plan:
    """Plan studies together, each with all the overrides; reads no corpus and writes nothing.

    most, block: plan the most seeds of studies whose seeds are added until their verdicts are decided, `block` at a time.
    Raises StudyError, also for an unknown device.
    """
    schedules = {} if most is None else {name: schedule(read_study(name, overrides), most, block) for name in names}
    seeds = {name: [seeds_override(planned.seeds)] for name, planned in schedules.items()}
    opened = _distinct([open_study(name, [*overrides, *seeds.get(name, [])], store, remember=False) for name in names])
    for one in opened:
        check_loggers(one.file)
    tree, found = merged([one.tree for one in opened]), open_store(store)
    states = shown_states(found, tree.stages)
    done = {key for key, state in states.items() if state.state == "done"}
    # Before the store is read for speeds, so that damage is one sentence.
    measured = planned_evaluations(replace(opened[0], tree=tree, facts=_together(opened)))
    totals = total_cost(
        tree, done, device, measured_speeds(found, states), stage_parallelism([one.file for one in opened])
    )
    rooms = [data_room(one.name, one.file, one.facts, one.store) for one in opened]
    total = _with_data(totals, opened, rooms, store)
    stages = [
        PlannedStage(stage.key, stage.stage, stage.parent, stage.axes, stage.tokens, states[stage.key].state)
        for stage in tree.stages.values()
    ]
    studies = [
        PlannedStudy(
            one.name,
            one.tree.study,
            _axes(one),
            one.tree.provisional,
            schedules[one.name].counts if one.name in schedules else [],
        )
        for one in opened
    ]
    notes = [*_notes(opened, rooms), *(note for room in rooms for note in room.notes)]
    notes += [note for one in opened if not overrides and (note := edit_note(one))]
    try:
        check_starts(found, tree.stages, states)
    except MissingResourceError as error:
        notes.append(str(error))
    defaults = list(dict.fromkeys(line for one in opened for line in planned_defaults(one)))
    return Plan(
        tree.study,
        tree.provisional,
        device,
        studies,
        tree.chain,
        stages,
        total,
        notes,
        measured,
        _disk(total),
        defaults,
    )


def _notes(opened: Sequence[OpenedStudy], rooms: Sequence[DataRoom]) -> list[str]:
    """What the files of studies name and nothing uses, or what is not there yet, one sentence each."""
    notes = [f"{one.name}: {one.file.unused_note}" for one in opened if one.file.unused]
    notes += [
        f"{one.name}: model.hf: {hf} is not prepared, so its size is unknown, and its FLOPs, hours and weights count as 0"
        for one in opened
        for (hf, *_), checkpoint in one.facts.checkpoints.items()
        if checkpoint.counts is None
    ]
    notes += [
        f"{one.name}: evaluate.tasks.{name}: {task.absent}; preparing the data downloads it"
        for one in opened
        for name, task in one.facts.tasks.items()
        if task.absent
    ]
    notes += [
        f"{one.name}: corpora.{name} is not prepared, so the tokens of {REFERENCE}, which reads all its pairs, count as 0"
        for one in opened
        for (name, _), corpus in one.facts.corpora.items()
        if not corpus.prepared and any(_is_reference(stage, corpus) for stage in one.tree.stages.values())
    ]
    notes += [note for one, room in zip(opened, rooms, strict=True) for note in _short_corpora(one, room)]
    return [*notes, *(note for one in opened for note in _late_stopping(one))]


def _is_reference(stage: Stage, corpus: CorpusFacts) -> bool:
    return stage.stage == REFERENCE and f'"{corpus.fingerprint}"' in stage.recipe


def _short_corpora(opened: OpenedStudy, room: DataRoom) -> list[str]:
    """One sentence for each unprepared corpus that is too small for what a stage takes of it.

    A study may limit what is read of a corpus. A source with fewer bytes than a stage takes tokens is too small, unless it is
    compressed well.
    """
    corpora = opened.file.study.corpora if isinstance(opened.file.study, Study) else {}
    unprepared = {
        one.fingerprint: (name, length) for (name, length), one in opened.facts.corpora.items() if not one.prepared
    }
    notes = []
    # Most stages of a large tree have the recipe of another one.
    distinct = dict.fromkeys((stage.stage, stage.recipe) for stage in opened.tree.stages.values())
    for kind, text in distinct if unprepared else ():
        recipe = json.loads(text)
        name, length = unprepared.get(recipe.get("corpus"), ("", 0))
        taken = (recipe.get("first", 0) + recipe.get("distinct", 0)) * length
        if name and (limit := corpora[name].tokens) is not None and taken > limit:
            notes.append(
                f"{opened.name}: corpora.{name}.tokens: reading stops at {limit:,} training tokens, and {kind} takes "
                f"{taken:,}; raise the limit, or lower {kind}.tokens"
            )
        elif name and taken > room.sources.get(name, taken):
            notes.append(
                f"{opened.name}: corpora.{name}: its source has {format_bytes(room.sources[name])}, and {kind} takes {taken:,} "
                f"tokens, more than one of each byte; enlarge the corpus, or lower {kind}.tokens"
            )
    return list(dict.fromkeys(notes))


def _late_stopping(opened: OpenedStudy) -> list[str]:
    """Stages that end before early stopping first evaluates them, one sentence for each kind and value."""
    longest: dict[tuple[str, int], int] = {}
    for stage in opened.tree.stages.values():
        if '"early_stopping":{' in stage.recipe:  # without, most recipes need not be parsed
            recipe = json.loads(stage.recipe)
            kind = stage.stage, recipe["early_stopping"]["every"]
            longest[kind] = max(longest.get(kind, 0), recipe["steps"])
    return [
        f"{opened.name}: {name}.early_stopping.every: {every:,} steps, and the stage has at most {counted(steps, 'step')}, "
        "so it never stops early; lower it, or remove early_stopping"
        for (name, every), steps in longest.items()
        if every > steps
    ]


def _with_data(totals: Totals, opened: Sequence[OpenedStudy], rooms: Sequence[DataRoom], store: Path) -> PlanTotals:
    """The totals of the tree with those of the data. rooms: of each study; what they share is that of the largest."""
    data = _data_bytes(opened, rooms)
    downloads, parts, tokens = (max(vars(room)[name] for room in rooms) for name in ("downloads", "parts", "tokens"))
    speed = measured_speed(store)
    known = vars(totals) | {"disk_peak_bytes": totals.disk_peak_bytes + data + downloads + parts}
    return PlanTotals(
        **known,
        data_bytes=data,
        download_bytes=downloads,
        parts_bytes=parts,
        preparation_tokens=tokens,
        preparation_sized_by=list(max(rooms, key=lambda room: room.tokens).measured),
        preparation_core_hours=tokens / (speed or MODELLED) / 3600,
        preparation_speed=speed or MODELLED,
        preparation_measured=speed is not None,
    )


def _disk(totals: PlanTotals) -> list[DiskItem]:
    """What takes disk, in the order in which it is written."""
    checkpoints = totals.disk_peak_bytes - totals.disk_bytes - totals.kept_checkpoint_bytes
    checkpoints -= totals.data_bytes + totals.download_bytes + totals.parts_bytes
    packed = "by gc, once the corpora are packed"
    children = "by gc --weights, once the stages that start from them are done"
    return [
        DiskItem("copies of data sets", totals.download_bytes, packed),
        DiskItem("parts of corpora", totals.parts_bytes, packed),
        DiskItem("packed corpora", totals.data_bytes, "never"),
        DiskItem("checkpoints", checkpoints, "when their stage is done"),
        DiskItem("checkpoints that done stages keep", totals.kept_checkpoint_bytes, "by gc"),
        DiskItem("weights that stages start from", totals.freeable_bytes, children),
        DiskItem("other weights", totals.disk_bytes - totals.freeable_bytes, "never"),
    ]


def _together(opened: Sequence[OpenedStudy]) -> Facts:
    """The facts of the first study, with the corpora of all."""
    return replace(opened[0].facts, corpora={at: one for study in opened for at, one in study.facts.corpora.items()})


def _distinct(opened: Sequence[OpenedStudy]) -> list[OpenedStudy]:
    """The studies, each file once. Raises StudyError if two different ones have the same name."""
    found: dict[str, OpenedStudy] = {}
    for one in opened:
        other = found.setdefault(one.tree.study, one)
        if other.file.study != one.file.study:
            raise StudyError(
                f"{one.name}: study: {other.name} is another study with the same name, {one.tree.study}; give one of them "
                "another name"
            )
    return list({one.file.path: one for one in opened}.values())


def _axes(opened: OpenedStudy) -> dict[str, int]:
    sizes = {name: len(options) for name, options in opened.file.cases.items()}
    return sizes | {name: len(values) for name, values in opened.file.axes.items()}


def stage_parallelism(files: Sequence[StudyFile]) -> dict[str, Parallelism]:
    """How each stage is executed; of several studies, the one that takes the most counts."""
    parallelism = {}
    for stage in dict.fromkeys([*(name for file in files for name in file.study.stages), *GROUNDWORK]):
        executions = [file.study.execution.of_stage(stage) for file in files]
        parallelism[stage] = Parallelism(
            max(execution.devices for execution in executions),
            max(one.slurm.at_a_time for one in executions),
            min(one.pack for one in executions),
            any(one.keep_states for one in executions),
        )
    return parallelism


def _data_bytes(opened: Sequence[OpenedStudy], rooms: Sequence[DataRoom]) -> int:
    """Bytes of the packed corpora, each once. An unprepared corpus counts as `data_room` estimates it."""
    sizes = {}
    for one, room in zip(opened, rooms, strict=True):
        for (name, length), facts in one.facts.corpora.items():
            if facts.prepared:
                sequences = (facts.train or 0) * (PAIR if one.file.study.corpora[name].is_pairs else 1)
                sizes[facts.fingerprint] = sequences * length * bytes_of_token(one.facts)
        sizes |= room.packed
    return sum(sizes.values())
