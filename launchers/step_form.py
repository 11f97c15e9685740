"""How a run computes its steps, as its first attempt settled it: what changes their last bits, and not what they mean."""

from dataclasses import asdict, dataclass

from results.store import Run
from sweeps.atomic import read_json, write_json

FILE = "steps.json"


@dataclass(frozen=True)
class StepForm:
    compiled: bool
    micro_batch: int | None
    """Sequences that one process takes at a time; None: its whole share of a batch."""


def recorded_form(run: Run) -> StepForm | None:
    """That of the attempts so far; None where none has trained."""
    try:
        return StepForm(**read_json(run.folder / FILE))
    except FileNotFoundError:
        return None


def record_form(run: Run, form: StepForm) -> None:
    write_json(run.folder / FILE, asdict(form))
