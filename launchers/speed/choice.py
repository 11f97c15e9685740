"""The choice of `precision: auto` and `compile: auto` on CPUs: arithmetic on measured speeds, with its reason in words."""

from dataclasses import dataclass

from retain.launchers.speed.measured import Compiled, Precision, Speeds

FEWEST_STEPS = 200
"""A stage is measured if it and the stages that it starts from have so many steps. Measuring takes 12 to 24 steps."""
LEAST_GAIN = 1.15
"""How many times as fast bf16 must be. Less is within the noise of a busy machine, and does not repay other digits."""
EXPECTED_SAVING = 0.15
"""The share of a step that compiling saves, before it has been measured."""
EXPECTED_COMPILE_S = 30.0
"""What compiling takes, before it has been measured: EXPECTED_SAVING of 200 s of steps."""
UNMEASURED = "not measured on this kind of processor yet, which the first such stage that trains here does"


@dataclass(frozen=True)
class Choice:
    """A setting, and why it is chosen, as a clause."""

    taken: bool
    reason: str


def too_few(steps: int) -> str | None:
    """Why the steps of a path are not worth measuring; None if they are."""
    if steps >= FEWEST_STEPS:
        return None
    return f"{steps} steps from the start of the path are too few to measure (at least {FEWEST_STEPS})"


def choose_bf16(speeds: Speeds) -> Choice:
    """Whether bf16 is faster by enough. It depends on the shape alone, so seeds and siblings agree."""
    gain = speeds["fp32"] / speeds["bf16"]
    times = f"a step takes {_duration(speeds['bf16'])} in bf16 and {_duration(speeds['fp32'])} in fp32"
    if gain >= LEAST_GAIN:
        return Choice(True, f"{times}: {gain:.2f} times as fast")
    return Choice(False, f"{times}: {gain:.2f} times as fast, and {LEAST_GAIN} would be needed")


def worth_trying(step_s: float, steps: int) -> Choice:
    """Whether to compile in order to measure it, for all steps that a process will train."""
    uncompiled, least = step_s * steps, EXPECTED_COMPILE_S / EXPECTED_SAVING
    words = f"{steps:,} steps of {_duration(step_s)} take {uncompiled:.0f} s uncompiled"
    if uncompiled >= least:
        return Choice(True, f"{words}, so compiling is tried and measured (from {least:.0f} s on)")
    return Choice(False, f"{words}, too short to try compiling (from {least:.0f} s on)")


def choose_compiled(found: Compiled, steps: int) -> Choice:
    """Whether compiled code that the store has repays the time to load it, over all steps that a process will train."""
    saved = (found["uncompiled"] - found["step"]) * steps
    words = (
        f"{steps:,} steps of {_duration(found['step'])} instead of {_duration(found['uncompiled'])} save {saved:.0f} s, "
        f"and loading the compiled code takes {found['warm']:.1f} s"
    )
    return Choice(saved > found["warm"], words)


def planned_choices(precision: str, compiles: str | bool, speeds: Speeds | None, so_far: int, steps: int) -> list[str]:
    """What `auto` means for a stage on CPUs of this kind, in words: its precision, and whether it is compiled.

    so_far: the steps of its path, itself included. steps: those that one process will train.
    """
    opens = precision == "auto", compiles == "auto"
    if too_few(so_far):
        taken = " and ".join(what for what, is_open in zip(("fp32", "not compiled"), opens, strict=True) if is_open)
        return [f"{taken}: a path of fewer than {FEWEST_STEPS} steps is too short to measure"] if taken else []
    if speeds is None:
        found = [("precision by measurement", UNMEASURED), ("compiled by measurement", UNMEASURED)]
    else:
        precise = choose_bf16(speeds) if opens[0] else Choice(precision == "bf16", "as the study says")
        kind = precision_name(precise.taken)
        compiled = compiling(speeds, kind, steps)
        found = [
            (f"precision {kind}", precise.reason),
            ("compiled" if compiled.taken else "not compiled", compiled.reason),
        ]
    return [f"{what}: {why}" for (what, why), is_open in zip(found, opens, strict=True) if is_open]


def compiling(speeds: Speeds, precision: Precision, steps: int) -> Choice:
    """Whether steps are compiled: by what is known of compiled ones, or else whether compiling is tried."""
    known = speeds.get("compiled", {}).get(precision)
    return choose_compiled(known, steps) if known else worth_trying(speeds[precision], steps)


def precision_name(bf16: bool) -> Precision:
    return "bf16" if bf16 else "fp32"


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"
