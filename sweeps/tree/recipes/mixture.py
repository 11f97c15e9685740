"""The recipe of a stage's `mix`: how many sequences of which corpora, in which window, and how they spread over the stage."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.units import counted
from retain.sweeps.schema.stages import Component, Optimisation
from retain.sweeps.schema.study import Study
from retain.sweeps.tree.data_facts import Facts

Window = tuple[int, int, int]
"""The positions [begin, end) of a stage, and the number of sequences that are mixed into them."""


@dataclass(frozen=True)
class StageMixture:
    """What a stage reads besides the sequences of its own corpus."""

    main: int
    """The sequences of the stage's own corpus that remain."""
    total: int
    """All sequences of the stage."""
    components: tuple[Mapping[str, Any], ...]
    """The components as the recipe lists them."""

    @property
    def recipe(self) -> dict[str, Any]:
        """The field `mix` of the recipe; empty without components, so that a stage without any keeps its key."""
        return {"mix": list(self.components)} if self.components else {}


class OverfullError(ValueError):
    """Parts of a stage have fewer positions than sequences that are confined to them."""

    def __init__(self, parts: Sequence[tuple[int, int]], needed: int) -> None:
        self.parts, self.needed = parts, needed
        self.room = sum(end - begin for begin, end in parts)


def stage_mixture(
    study: Study, facts: Facts, name: str, stage: Optimisation, main: int, exposed: int = 0
) -> StageMixture:
    """Return the mixture of a stage, in sequences. Equal mixtures are equal, in whatever order and unit they are written.

    name: the stage's name for messages. main: the sequences of the stage's own corpus before any are replaced. exposed: the
    sequences of D_post that `exposure` adds. Raises StudyError for an amount that does not fit the stage or its corpus.
    """
    counts = _counts(study, name, stage, main + exposed)
    replaced = sum(count for _, _, component, count in counts if component.replaces)
    if replaced and replaced >= main:
        raise StudyError(
            f"{name}.mix: {replaced:,} sequences are to replace sequences of {stage.corpus}, but the stage has {main:,} of "
            "them and must keep at least one; lower the amounts, or remove replaces"
        )
    total = main + exposed - replaced + sum(count for *_, count in counts)
    merged: dict[tuple[Any, ...], int] = {}
    for field, corpus, component, count in counts:
        made = _component(study, facts, field, corpus, component, count, total)
        merged[made] = merged.get(made, 0) + count
    parts = []
    for (begin, end, fingerprint, first, distinct), count in sorted(merged.items()):
        window = {} if (begin, end) == (0, total) else {"window": [begin, end]}
        parts.append({"corpus": fingerprint, "distinct": distinct, "first": first, "sequences": count, **window})
    return StageMixture(main - replaced, total, tuple(parts))


def check_fit(name: str, mixture: StageMixture, exposure: Mapping[str, Any] | None = None) -> None:
    """Raise StudyError if the windows of a stage's components, exposure included, have too few positions together."""
    parts = [*([exposure] if exposure else []), *mixture.components]
    try:
        spread(mixture.total, [window_of(part, mixture.total) for part in parts])
    except OverfullError as error:
        where = " and ".join(f"{begin:,} to {end:,}" for begin, end in _joined(error.parts))
        raise StudyError(
            f"{name}.mix: {error.needed:,} sequences are confined to positions {where} of the stage's {mixture.total:,}, "
            f"which have room for {error.room:,}; widen a window, or lower an amount"
        ) from None


def _joined(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Parts of a stage with neighbours joined."""
    joined: list[tuple[int, int]] = []
    for begin, end in parts:
        if joined and joined[-1][1] == begin:
            begin = joined.pop()[0]
        joined.append((begin, end))
    return joined


def components(name: str, stage: Optimisation) -> Iterator[tuple[str, str, Component]]:
    """Each component of a stage's `mix` with an amount above 0: its field, its corpus's name, and itself. name: the stage's."""
    for corpus, listed in stage.mix.items():
        field = f"{name}.mix.{corpus}"
        named = {"": listed} if isinstance(listed, Component) else {f".{at}": one for at, one in enumerate(listed)}
        yield from ((field + at, corpus, one) for at, one in named.items() if one.tokens or one.passes or one.share)


def stage_window(window: Sequence[float], total: int) -> tuple[int, int]:
    """The positions [begin, end) of a window that is given as fractions of a stage of `total` sequences."""
    return int(window[0] * total + 0.5), int(window[1] * total + 0.5)


def window_of(part: Mapping[str, Any], total: int) -> Window:
    """The window of a part of a recipe, by default the whole stage, and its number of sequences."""
    begin, end = part.get("window", (0, total))
    return begin, end, part["sequences"]


def spread(total: int, windows: Sequence[Window]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Divide a stage at the ends of all windows, and return how many sequences each window has in each part of the stage.

    Returns the position at which each part ends, and for each window one number a part. The numbers are proportional to the
    lengths of the parts, to within one sequence; only where a part would overflow, sequences move to other parts of their
    window. Raises OverfullError if no numbers fit.
    """
    cuts = sorted({0, total, *(cut for begin, end, _ in windows for cut in (begin, end))})
    parts = list(pairwise(cuts))
    counts = [
        [
            count * (last - begin) // (end - begin) - count * (first - begin) // (end - begin)
            if begin <= first < end
            else 0
            for first, last in parts
        ]
        for begin, end, count in windows
    ]
    inside = [[begin <= first < end for first, _ in parts] for begin, end, _ in windows]
    for number in range(len(parts)):
        while _excess(parts, counts, number) > 0:
            _relieve(parts, counts, inside, number)
    return tuple(last for _, last in parts), [tuple(row) for row in counts]


def shortened(parts: Sequence[Mapping[str, Any]], total: int, shorter: int) -> list[dict[str, Any]]:
    """The components of a stage of `total` sequences, for one of fewer: the same shares and windows, to within rounding.

    A component is left out if it rounds to no sequence, or its window to none. The stage's own corpus keeps a sequence, and
    what is confined to a window never exceeds it.
    """
    windows = [stage_window([at / total for at in part.get("window", (0, total))], shorter) for part in parts]
    counts = [
        int(part["sequences"] * shorter / total + 0.5) if begin < end else 0
        for part, (begin, end) in zip(parts, windows, strict=True)
    ]

    def overfull() -> bool:
        full = [(*window, count) for window, count in zip(windows, counts, strict=True) if count]
        if sum(counts) >= shorter:
            return True
        try:
            spread(shorter, full)
        except OverfullError:
            return True
        return False

    while overfull():
        counts[counts.index(max(counts))] -= 1
    made = []
    for part, count, (begin, end) in zip(parts, counts, windows, strict=True):
        window = {} if (begin, end) == (0, shorter) else {"window": [begin, end]}
        kept = {name: value for name, value in part.items() if name != "window"}
        made.append(kept | {"distinct": min(part["distinct"], count), "sequences": count} | window)
    return [part for part in made if part["sequences"]]


def _excess(parts: Sequence[tuple[int, int]], counts: Sequence[Sequence[int]], number: int) -> int:
    """How many sequences a part has beyond its positions; negative if it has room."""
    return sum(row[number] for row in counts) - (parts[number][1] - parts[number][0])


def _relieve(
    parts: Sequence[tuple[int, int]], counts: list[list[int]], inside: Sequence[Sequence[bool]], full: int
) -> None:
    """Move sequences from an overfull part, through other parts if need be, to the nearest one with room.

    This is one augmenting path of a maximum flow. Raises OverfullError if no part with room can be reached: then the parts
    that were reached are too small for the windows that lie in them.
    """
    # For each part that was reached, the window and the part from which.
    came: dict[int, tuple[int, int] | None] = {full: None}
    for part in (queue := [full]):
        if _excess(parts, counts, part) < 0:
            path, at = [], part
            while (step := came[at]) is not None:
                path.append((step[0], step[1], at))
                at = step[1]
            movable = [counts[window][source] for window, source, _ in path]
            moved = min(_excess(parts, counts, full), -_excess(parts, counts, part), *movable)
            for window, source, target in path:
                counts[window][source] -= moved
                counts[window][target] += moved
            return
        for window, row in enumerate(counts):
            for target in range(len(parts)):
                if row[part] and inside[window][target] and target not in came:
                    came[target] = window, part
                    queue.append(target)
    raise OverfullError([parts[part] for part in sorted(came)], sum(row[part] for row in counts for part in came))


def _counts(study: Study, name: str, stage: Optimisation, own: int) -> list[tuple[str, str, Component, int]]:
    """Each component, as `components` yields it, and its number of sequences.

    own: the stage's sequences without components.
    """
    listed = [(*entry, _fixed_count(study, entry[2])) for entry in components(name, stage)]
    added = [component for *_, component, _ in listed if not component.replaces]
    shares = sum(component.share or 0.0 for component in added)
    if shares >= 1:
        raise StudyError(
            f"{name}.mix: the shares that are added sum to {shares:g} of the stage and leave nothing for "
            f"{stage.corpus}; lower them"
        )
    fixed = sum(count for *_, component, count in listed if not component.replaces and count is not None)
    total = (own + fixed) / (1 - shares)
    made = []
    for field, corpus, component, count in listed:
        amount = "share" if component.share is not None else "tokens" if component.tokens is not None else "passes"
        sequences = int((component.share or 0.0) * total + 0.5) if count is None else count
        if not sequences:
            given = getattr(component, amount)
            raise StudyError(f"{field}.{amount}: {given:g} rounds to zero sequences; raise it, or set it to 0 for none")
        made.append((field, corpus, component, sequences))
    return made


def _fixed_count(study: Study, component: Component) -> int | None:
    """The number of sequences of a component; None if it depends on the length of the stage."""
    if component.tokens is not None:
        return component.tokens // study.sequence_length
    if component.passes is not None:
        return int(component.passes * ((component.of or 0) // study.sequence_length) + 0.5)
    return None


def _component(
    study: Study, facts: Facts, field: str, name: str, component: Component, count: int, total: int
) -> tuple[int, int, str, int, int]:
    """A component's window [begin, end), its corpus's fingerprint, and the first and the number of its distinct sequences.

    Raises StudyError if it does not fit its window or its corpus.
    """
    length, corpus = study.sequence_length, facts.corpora[name, study.sequence_length]
    first, distinct = component.skip // length, count
    if component.of is not None:
        if component.of < length:
            raise StudyError(f"{field}.of: {component.of} tokens are less than one sequence of {length}; raise it")
        distinct = min(count, component.of // length)
    if corpus.train is not None and first + distinct > corpus.train:
        skipped = f" after the {component.skip:,} that are skipped" if first else ""
        raise StudyError(
            f"{field}: {distinct * length:,} distinct tokens{skipped} exceed the training split of corpus {name}, which has "
            f"{corpus.train * length:,}; lower the amount, repeat fewer tokens with of, or enlarge the corpus"
        )
    begin, end = stage_window(component.window, total)
    if end - begin < count:
        shown = f"[{component.window[0]:g}, {component.window[1]:g}]"
        room = (
            f"has room for {end - begin:,} of the stage's {total:,} sequences" if end > begin else "rounds to nothing"
        )
        raise StudyError(
            f"{field}.window: {shown} {room}, but {counted(count, 'sequence')} must fit; widen the window, or lower the amount"
        )
    return begin, end, corpus.fingerprint, first, distinct
