"""The table of Retain's studies in docs/studies.md, with the cost of each on an empty store, as `retain plan` computes it."""

from collections.abc import Sequence
from pathlib import Path

import retain
from retain.sweeps.base.units import format_bytes, format_size
from retain.sweeps.schema.read import STUDIES, read_study

BEGIN, END = "<!-- studies: python -m tools.generated_pages -->\n", "<!-- end of studies -->\n"
PAPER = {
    "135M": ("figure2", "figure3a", "figure3b", "figure4-5", "figure6", "figure7"),
    "1B": ("figure8-9", "figure10-12", "table10"),
}
"""The paper's studies, by the size of the model."""
SIZES = {"smollm2-135m": "135M", "smollm2-1b": "1B"}
"""The sizes of presets, as the table names them."""
EMPTY = Path("a store that does not exist")
OWN = "its own"
"""What is shown for a model that is no preset."""


def study_table() -> str:
    """A Markdown table: the paper's studies with their total, then the other studies."""
    lines = [
        "| study | model | trials | stages | pretrainings | tokens | tokens, one run per trial | savings factor | H100 hours "
        "| H100 hours, one run per trial | A100 hours | disk at rest | disk at the peak |",
        f"|{'---|' * 13}",
    ]
    for size, names in PAPER.items():
        lines += [_row([name], f"`{name}`", size) for name in names]
        lines.append(_row(names, f"**all {size} studies together**", size))
    small = sorted(
        {path.stem for path in STUDIES.glob("*.yaml")} - {name for names in PAPER.values() for name in names}
    )
    return "\n".join([*lines, *(_row([name], f"`{name}`", None) for name in small)]) + "\n"


def _row(names: Sequence[str], shown: str, size: str | None) -> str:
    """One row. A small study has no hours, and neither has one of a checkpoint, whose size is unknown until it is prepared."""
    plan = retain.plan(names, store=EMPTY)
    totals = plan.totals
    hours, alone = totals.gpu_hours_by_device, totals.gpu_hours_without_sharing
    fields = read_study(names[0]).study.model.model_dump(exclude_none=True)
    preset = fields.get("preset", "a checkpoint" if "hf" in fields else OWN if "layers" in fields else "linear")
    model = size or SIZES.get(preset, preset)
    pretrainings = sum(stage.stage == "pretrain" for stage in plan.stages)
    cells = [
        shown,
        model,
        f"{totals.trials:,}",
        f"{totals.stages:,}",
        f"{pretrainings}",
        format_size(totals.tokens),
        format_size(totals.tokens_without_sharing),
        f"{totals.tokens_without_sharing / totals.tokens:.1f}",
    ]
    cells += [
        f"{each:,.0f}" if model in (*PAPER, OWN) else "-" for each in (hours["H100"], alone["H100"], hours["A100"])
    ]
    disk = (totals.disk_bytes + totals.data_bytes, totals.disk_peak_bytes)
    cells += ["-" if "hf" in fields else format_bytes(each) for each in disk]
    return f"| {' | '.join(cells)} |"


def with_table(text: str, table: str) -> str:
    """The text of docs/studies.md with the table between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table}{END}{after}"
