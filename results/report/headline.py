"""The first screen of the page: the answer, what each method had learned and what fine-tuning left, cost and certainty."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from retain.results.analysis.axes import METHOD, SIZE, axis_names, grouped, repetitions, seed_axis, seed_of, setting
from retain.results.analysis.axis_effects import AxisEffect
from retain.results.analysis.effects import LEVEL, Effect, effect_of
from retain.results.analysis.loss_planes import L_IM, L_RET, has_losses, matched_rows, means_by_seed
from retain.results.analysis.methods import (
    PIPELINES,
    names_pipeline,
    pipeline_axes,
    pipeline_of,
    setting_axes,
    setting_name,
    with_pipelines,
)
from retain.results.claims.judging import Verdict
from retain.results.figures.paper import method_title
from retain.results.figures.style import COLOURS, LineStyle, line_styles, style_at
from retain.results.report.provenance import device_seconds
from retain.results.store.loss_table import (
    Row,
    chain_of,
    finished_trials,
    named_losses,
    stages_after_posttraining,
)
from retain.results.store.state import State
from retain.sweeps.base.units import counted, format_size

MOST_NAMES = 3
"""The answer counts more claims than these without naming them."""
OUTCOMES = ("supported", "not supported", "undecided")
MOST_OPEN = 12
"""More rows than these of the first figure are folded."""


@dataclass(frozen=True)
class Fact:
    """One number of the first screen."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Kept:
    """One method before and after fine-tuning: means in the unit of the losses, over the same settings as its neighbours."""

    name: str
    style: LineStyle
    before: float
    after: float
    forgotten: str
    """L_ret − L_im."""
    spread: str
    """Its lowest and highest seed; empty with one seed."""
    retained: Mapping[int, float]
    """L_ret of each seed, or of those that share the compared runs; empty unless there are several, each over the same
    settings."""
    start: float = 0.0
    end: float = 0.0
    """The places of `before` and `after` on the row's scale, in percent."""


@dataclass(frozen=True)
class KeptGroup:
    """The methods of one pipeline and size of D_post, on one scale from `low` to `high`."""

    subject: str
    low: float
    high: float
    rows: tuple[Kept, ...]
    even: bool = True
    """Whether all rows are means over the same settings, so that they can be compared."""


def kept_groups(rows: Sequence[Row]) -> tuple[KeptGroup, ...]:
    """What each method, or else exposure, had learned and what fine-tuning left; empty if no trial has both losses."""
    rows = with_pipelines(rows)
    naming = _naming_axes(rows)
    found = []
    names = list(dict.fromkeys(setting_name(row, naming) for row in rows))
    # Rows are named beside their line: more rows than colours have one colour, rather than a colour that means two.
    styles = line_styles(names) if len(names) <= len(COLOURS) else dict.fromkeys(names, style_at(0))
    for subject, own in grouped(rows, _subject).items():
        shared = [axis for axis in axis_names(own) if axis not in naming and all(axis in row["axes"] for row in own)]
        finished = [row for row in own if has_losses(row, L_IM, L_RET)]
        begun = {setting(row, naming) for row in finished}
        even = matched_rows([row for row in own if setting(row, naming) in begun], shared, L_IM, L_RET)
        by_name = grouped(even or finished, lambda row: setting_name(row, naming))
        repetition = repetitions(list(by_name.values()))
        lines = [_kept(name, styles[name], by_name[name], repetition) for name in names if name in by_name]
        if lines:
            found.append(_scaled(subject, lines, even=bool(even)))
    return tuple(found)


def _kept(name: str, style: LineStyle, rows: Sequence[Row], repetition: Mapping[int, int]) -> Kept:
    before, after = (means_by_seed(rows, loss) for loss in (L_IM, L_RET))
    per_seed = [after[seed] - before[seed] for seed in after]
    mean_before, mean_after = (fmean(row[loss] for row in rows) for loss in (L_IM, L_RET))
    forgotten = _signed(mean_after - mean_before)
    if not _has_spread(rows):
        return Kept(method_title(name), style, mean_before, mean_after, forgotten, "", {})
    spread = f"{_signed(min(per_seed))} to {_signed(max(per_seed))}"
    apart = grouped(after, repetition.__getitem__)
    retained = {one: fmean(after[seed] for seed in own) for one, own in apart.items()}
    return Kept(method_title(name), style, mean_before, mean_after, forgotten, spread, retained)


def _has_spread(rows: Sequence[Row]) -> bool:
    """Whether these trials have several seeds, each over the same settings, so that seeds alone spread their means."""
    swept = [axis for axis in axis_names(rows) if axis != seed_axis(rows[0])]
    settings = [{setting(row, swept) for row in own} for own in grouped(rows, seed_of).values()]
    return len(settings) > 1 and all(own == settings[0] for own in settings)


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # + 0.0 makes -0.0 positive


def _scaled(subject: str, lines: Sequence[Kept], even: bool) -> KeptGroup:
    values = [value for line in lines for value in (line.before, line.after)]
    low, high = min(values), max(values)
    reach = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / reach, 1)

    placed = tuple(replace(line, start=place(line.before), end=place(line.after)) for line in lines)
    return KeptGroup(subject, low, high, placed, even)


def run_names(rows: Sequence[Row]) -> dict[str, str]:
    """What the line of each run is named by, by its key: as in the first figure.

    A run that trials share is named by the axes on which they agree, and by the method of the first of them. Without such an
    axis it is `all trials` if each line has it, and `several` otherwise.
    """
    rows = with_pipelines(rows)
    naming = _naming_axes(rows)
    sharing: dict[str, list[Row]] = {}
    for row in rows:
        for key in row["keys"].values():
            if key is not None:
                sharing.setdefault(key, []).append(row)
    lines = {setting(row, naming) for row in rows}
    found = {}
    for key, own in sharing.items():
        agreed = [axis for axis in naming if axis == METHOD or _agree(own, axis)]
        on_some = {setting(row, naming) for row in own} < lines
        found[key] = "several" if on_some and not agreed else setting_name(own[0], agreed)
    return found


def _agree(rows: Sequence[Row], axis: str) -> bool:
    return all(row["axes"].get(axis) == rows[0]["axes"].get(axis) for row in rows)


def _naming_axes(rows: Sequence[Row]) -> list[str]:
    """The axes that name a method: those that tell lines apart, besides those that name a group."""
    return [name for name in setting_axes(rows) if name != SIZE and not names_pipeline(name)]


def _subject(row: Row) -> str:
    pipeline, size = pipeline_of(row) or "", row["axes"].get(SIZE)
    parts = [PIPELINES.get(pipeline, pipeline)]
    parts.append(f"D_post of {format_size(size) if isinstance(size, int) else size} tokens" if size is not None else "")
    return ", ".join(filter(None, parts))


def answer(
    rows: Sequence[Row],
    groups: Sequence[KeptGroup],
    verdicts: Sequence[Verdict],
    unit: str,
    linear: bool = False,
    effects: Sequence[AxisEffect] = (),
) -> list[str]:
    """The answer in two sentences: what is decided, and what the losses are.

    unit: of the losses, such as nats. effects: of all axes; the largest is told where no claim has a verdict.
    """
    if rows and not {L_IM, L_RET} <= set(named_losses(rows)):
        return [
            *([_decided(verdicts)] if verdicts else []),
            "This chain of stages has no post-training with a stage after it, so it has no L_im and L_ret to compare; what "
            "each axis changes in the losses after every stage is under Effects.",
        ]
    if not groups:
        return ["No trial is finished yet, so there is no answer yet."]
    first = (
        "Gradient descent on the paper's two-layer linear model is compared with the closed forms of its theory."
        if linear
        else _decided(verdicts) or _largest(_upstream(effects, rows)) or "These trials test no claim of the paper."
    )
    return [first, _losses(groups, unit)]


def _upstream(effects: Sequence[AxisEffect], rows: Sequence[Row]) -> list[AxisEffect]:
    """The effects on L_ret of what is chosen before fine-tuning."""
    later, pipelines = stages_after_posttraining(chain_of(rows[0])), pipeline_axes(rows)
    return [
        one
        for one in effects
        if one.loss == L_RET
        and one.effect.seeds
        and one.axis not in pipelines
        and one.axis.partition(".")[0] not in later
    ]


def _largest(effects: Sequence[AxisEffect]) -> str:
    """Which choice changes L_ret most, of those whose interval excludes 0 if there are any; empty without effects.

    The largest of several differences is too large on average, so the intervals count all of them.
    """
    if not effects:
        return ""
    effects = [replace(one, effect=_counting(len(effects), one.effect.per_seed)) for one in effects]
    certain = [one for one in effects if one.effect.low * one.effect.high > 0]
    most = max(certain or effects, key=lambda one: abs(one.effect.mean))
    value, against = (setting_name({"axes": {most.axis: at}}, [most.axis]) for at in (most.value, most.against))
    chosen = f", as the largest of {len(effects)} differences" if len(effects) > 1 else ""
    told = (
        f"{value} {most.effect.written} against {against} "
        f"({most.effect.interval_in_words}{chosen}, {most.effect.sample})"
    )
    if certain:
        return f"Of the upstream choices, {most.axis} changes L_ret most: {told}."
    return f"No upstream choice is shown to change L_ret yet: {told}."


def _counting(compared: int, per_seed: Mapping[int, float]) -> Effect:
    """An effect that was chosen among several: its interval is one of 95% for all of them together (Bonferroni)."""
    return effect_of(per_seed, 1 - (1 - LEVEL) / compared)


def _decided(verdicts: Sequence[Verdict]) -> str:
    """How many claims are decided; empty without verdicts."""
    if not verdicts:
        return ""
    names = Counter(one.statement.name for one in verdicts)
    counts: Counter[str] = Counter(one.outcome for one in verdicts)
    if len(names) == 1:
        parts = [f"{outcome} in {counts[outcome]}" for outcome in OUTCOMES if counts[outcome]]
        text = f"{next(iter(names))}: {', '.join(parts)} of {counted(len(verdicts), 'comparison')}"
        return f"{text[0].upper()}{text[1:]}."
    if len(names) > MOST_NAMES:
        told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
        return f"{len(verdicts)} verdicts on {len(names)} claims: {told}."
    parts = []
    for outcome in OUTCOMES:
        found = Counter(one.statement.name for one in verdicts if one.outcome == outcome)
        named = [name + (f" (in {n} of {names[name]})" if names[name] > 1 else "") for name, n in found.items()]
        if named:
            parts.append(f"{outcome}: {', '.join(named)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _losses(groups: Sequence[KeptGroup], unit: str) -> str:
    groups = [group for group in groups if group.even]
    if not groups:
        return "No two methods are finished over the same settings yet, so their losses cannot be compared."
    shared = [
        line.name for line in groups[0].rows if all(line.name in {one.name for one in group.rows} for group in groups)
    ]
    if not shared:
        return "No method is finished in all pipelines."
    lines = {name: [line for group in groups for line in group.rows if line.name == name] for name in shared}
    before = {name: fmean(line.before for line in own) for name, own in lines.items()}
    after = {name: fmean(line.after for line in own) for name, own in lines.items()}
    base, best = shared[0], min(shared, key=after.__getitem__)
    if len(shared) == 1:
        changes = "raises" if after[best] >= before[best] else "lowers"
        return f"Fine-tuning {changes} the post-training loss from {before[best]:.3f} to {after[best]:.3f} {unit} on average."
    if best == base:
        second = min(shared[1:], key=after.__getitem__)
        gap = f"{after[second] - after[best]:.3f} higher{_interval(groups, best, second, len(shared) - 1)}"
        return f"{best} has the lowest L_ret on average, {after[best]:.3f} {unit}; the next is {second}, {gap}."
    return (
        f"On average {best} has the lowest L_ret, {after[best]:.3f} {unit}: {after[best] - after[base]:+.3f} against {base}"
        f"{_interval(groups, base, best, len(shared) - 1)}, while L_im, before fine-tuning, changes by "
        f"{before[best] - before[base]:+.3f}."
    )


def _interval(groups: Sequence[KeptGroup], first: str, second: str, compared: int) -> str:
    """The interval of L_ret of the second line minus that of the first, over seeds, in brackets; empty if there is none.

    compared: the number of differences among which this one was chosen.
    """
    lines = [{line.name: line.retained for line in group.rows} for group in groups]
    pairs = [(own[first], own[second]) for own in lines]
    seeds = set.intersection(*({*one} & {*other} for one, other in pairs))
    differences = {seed: fmean(other[seed] - one[seed] for one, other in pairs) for seed in sorted(seeds)}
    effect = _counting(compared, differences)
    chosen = f", as one of {compared} differences" if compared > 1 else ""
    return f" ({effect.interval_in_words}{chosen})" if effect.seeds > 1 else ""


def facts(rows: Sequence[Row], verdicts: Sequence[Verdict], states: Mapping[str, State]) -> list[Fact]:
    """How complete, how sure and how dear the results are."""
    finished = len(finished_trials(rows))
    seeds = max(1, len({seed_of(row) for row in rows}))
    found = [
        Fact("trials", f"{finished:,} of {len(rows):,}" if finished < len(rows) else f"{finished:,}", "finished"),
        Fact("seeds", f"{seeds}", "intervals are 95%, over seeds" if seeds > 1 else "one seed has no interval"),
    ]
    if verdicts:
        decided = sum(one.outcome != "undecided" for one in verdicts)
        corrected = sum(one.adjusted < 0.05 for one in verdicts)
        found.append(
            Fact("decided", f"{decided} of {len(verdicts)}", f"{corrected} also after correction for the page")
        )
    seconds = sum(map(device_seconds, states.values()))
    devices = Counter(attempt.device or "CPU" for state in states.values() for attempt in state.attempts)
    if devices:
        hours = f"{seconds / 3600:,.3g}"
        found.append(Fact("device-hours", hours, f"all attempts, on {', '.join(devices)}"))
    return found
