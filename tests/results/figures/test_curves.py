"""The loss curves of the page: their panels, their colours and their ends."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from retain.results.figures.curves import LossCurves, draw_curves
from retain.results.figures.style import line_styles
from tests.results.runs import registered

MIX = {"general": {"share": 0.2}}


def drawn(folder: Path, ends: Sequence[tuple[int, float]], **overrides: object) -> LossCurves:
    """The curves of a study whose stages all have two points and these; each run is named by all its axes."""
    tree, store = registered(folder / "runs", **overrides)
    names = {}
    for key, stage in tree.stages.items():
        points = [(1000, 6.0), (2000, 4.0), *ends]
        lines = [{"curve": f"{stage.stage}/loss", "tokens": at, "value": loss, "time": 0.0} for at, loss in points]
        (store.root / key / "curves.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        names[key] = f"{stage.stage} {stage.axes}"
    return draw_curves(tree, store, names)


def test_panels_are_in_the_order_of_the_chain_where_some_trials_skip_a_stage(tmp_path: Path) -> None:
    without, with_it = {"midtrain.tokens": 0}, {"midtrain.tokens": 640}
    found = drawn(
        tmp_path,
        [],
        stages=["pretrain", "midtrain", "posttrain", "finetune"],
        midtrain={"corpus": "general", "tokens": 640, "lr": 1e-3, "batch": 4},
        grid={"seed": [0]},
        cases={"middle": {"without": without, "with": with_it}},
    )
    stages = [panel.title.partition(":")[0] for panel in found.panels]
    assert stages == ["pretrain", "midtrain", "posttrain", "finetune"]


def test_lines_of_one_panel_have_different_colours_however_many_the_other_panels_have(tmp_path: Path) -> None:
    found = drawn(tmp_path, [], grid={"pretrain.exposure": [0, 0.5, 1], "finetune.lr": [1e-4, 2e-4, 3e-4, 4e-4]})
    for panel in found.panels[:2]:
        assert len({style.colour for _, style, _ in panel.legend}) == len(panel.legend) == 3


def test_a_line_has_the_colour_that_it_has_in_the_other_figures_whoever_shares_its_first_stages(tmp_path: Path) -> None:
    """Pretrainings that several lines share have names of their own, and come first."""
    tree, store = registered(tmp_path / "runs", grid={"posttrain.replay": [0, 0.1], "pretrain.exposure": [0, 1]})
    names = dict.fromkeys(tree.stages, "all trials") | {trial.leaf: str(trial.axes) for trial in tree.trials}
    for key, stage in tree.stages.items():
        lines = [{"curve": f"{stage.stage}/loss", "tokens": at, "value": 4.0, "time": 0.0} for at in (1000, 2000)]
        (store.root / key / "curves.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = draw_curves(tree, store, names)
    whole = [str(trial.axes) for trial in tree.trials]
    assert [(name, style) for name, style, _ in found.panels[-1].legend] == list(line_styles(whole).items())


def test_a_last_point_of_one_short_batch_does_not_end_a_curve(tmp_path: Path) -> None:
    """Its loss is of a few sequences, and would look like a jump."""
    for end, drawn_points in ((3000, 3), (2100, 2)):
        folder = tmp_path / str(end)
        folder.mkdir()
        curves = drawn(folder, [(end, 1.0)], grid={"seed": [0]})
        panel = curves.panels[0]
        ((_, style, _),) = panel.legend
        paths = re.findall(
            rf'<path d="(M[^"]*)" clip-path="[^"]*" style="fill: none; stroke: {style.colour.lower()}', panel.svg
        )
        assert [path.count("L") + 1 for path in paths] == [drawn_points]
