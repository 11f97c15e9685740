"""The overview figure of a study, as the files it is written to."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from retain.results.analysis.loss_planes import L_FT, L_RET
from retain.results.figures.catalogue import AXIS_LABELS
from retain.results.figures.overview import draw_losses
from retain.results.figures.style import GREY
from retain.results.store.loss_table import save_rows, trial_rows
from retain.results.store.runs import Store
from retain.sweeps.tree.tree import Tree
from tests.results.made_rows import exposure_rows
from tests.results.runs import finish, finish_all, kinds, registered


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Tree, Store]:
    return registered(tmp_path / "runs")


def drawn(tree: Tree, store: Store) -> dict[str, Path]:
    """The figure's files by suffix; the rows are saved first, as the command line does."""
    rows = trial_rows(tree, store)
    save_rows(store.root, tree.study, rows)
    return {path.suffix: path for path in draw_losses(store.root, tree.study, rows)}


def texts(svg: Path) -> str:
    """The texts of a figure; matplotlib keeps each text as a comment beside its outlines."""
    return svg.read_text(encoding="utf-8")


def test_a_png_and_an_svg_are_written_to_the_study_folder(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    made = drawn(tree, store)
    names = {path.name for path in (store.root / "studies" / "tiny").iterdir()}
    assert names == {"losses.png", "losses.svg", "losses.csv", "trials.json"}
    image: Any = imread(made[".png"])
    assert image.shape[0] > 300
    assert image.std() > 0
    assert ElementTree.parse(made[".svg"]).getroot().tag.endswith("svg")


def test_the_figure_names_its_lines_axes_and_units(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    text = texts(drawn(tree, store)[".svg"])
    for expected in (
        "L_im",
        "L_ret",
        "L_ft",
        "nats per token",
        "exposure λ",
        "finetune.lr = 0.0005",
        "finetune.lr = 0.002",
        "λ = 0",
        "λ = 1",
        "tiny",
    ):
        assert expected in text, expected
    assert "missing" not in text


def test_names_with_signs_of_formulas_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    named = {
        "$x_$": {"$\\frac{$": {"pretrain.exposure": 0}, "_b$": {"pretrain.exposure": 1}},
        "_c": {"^": {"seed": 1}, "%": {"seed": 2}},
    }
    tree, store = registered(tmp_path / "runs", cases=named, grid={"finetune.lr": [5e-4, 2e-3]})
    finish_all(tree, store)
    text = texts(drawn(tree, store)[".svg"])
    for expected in ("$x_$ = $\\frac{$", "$x_$ = _b$", "_c = ^"):
        assert expected in text, expected


def test_partial_results_are_drawn_and_missing_trials_are_counted(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store, lambda stage: stage != "finetune")
    assert drawn(tree, store) == {}
    assert not list((store.root / "studies" / "tiny").glob("*.svg"))
    finish(kinds(tree, store, "finetune")[0])
    assert "3 of 4 trials are missing" in texts(drawn(tree, store)[".svg"])


def test_the_same_results_give_the_same_bytes(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    first = {ending: path.read_bytes() for ending, path in drawn(tree, store).items()}
    assert {ending: path.read_bytes() for ending, path in drawn(tree, store).items()} == first


def test_seeds_share_one_line(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs", grid={"pretrain.exposure": [0, 1], "seed": [0, 1, 2]})
    for number, key in enumerate(tree.stages):
        finish(store.run(key), loss=float(number))
    text = texts(drawn(tree, store)[".svg"])
    assert "after fine-tuning (L_ret), all trials" in text
    assert "seed = " not in text


def test_a_study_without_an_exposure_axis_has_a_figure(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs", grid={"finetune.lr": [1e-4, 1e-3]})
    finish_all(tree, store)
    assert set(drawn(tree, store)) == {".png", ".svg"}


def test_without_exposure_the_losses_are_drawn_over_the_setting_that_varies(tmp_path: Path) -> None:
    mixed = {"posttrain.mix.general.tokens": [0, 640], "finetune.lr": [1e-4, 1e-3]}
    tree, store = registered(tmp_path / "runs", grid=mixed)
    finish_all(tree, store)
    text = texts(drawn(tree, store)[".svg"])
    for expected in (
        "posttrain.mix.general.tokens",
        "(L_ret), finetune.lr = 0.001",
        "posttrain.mix.general.tokens = 640",
    ):
        assert f"{expected} -->" in text, expected
    assert "exposure" not in text


def test_more_than_ten_lines_become_small_multiples_that_name_them_all(tmp_path: Path) -> None:
    rates = [1e-4 * number for number in range(1, 15)]
    text = texts(draw_losses(tmp_path, "mine", exposure_rows(sizes=(100_000,), seeds=(0,), rates=rates))[1])
    for rate in rates:
        assert f"(L_ret), finetune.lr = {rate:g}" in text


def test_lines_that_readers_cannot_tell_apart_have_one_colour_and_no_names(tmp_path: Path) -> None:
    rates = [1e-5 * number for number in range(1, 70)]
    text = texts(draw_losses(tmp_path, "mine", exposure_rows(sizes=(100_000,), seeds=(0,), rates=rates))[1])
    assert "69 lines" in text
    assert "lr = " not in text
    assert GREY in text


def test_the_frontier_has_its_axes_as_the_report_has_them(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    text = texts(drawn(tree, store)[".svg"])
    assert text.index(AXIS_LABELS[L_FT]) < text.index(AXIS_LABELS[L_RET])  # x is drawn before y


def test_l_im_has_a_line_of_its_own_for_each_size_of_d_post_and_each_pipeline(tmp_path: Path) -> None:
    """A mean over sizes, or over losses on different corpora, is the loss of nothing."""
    rows = exposure_rows(rates=(5e-5, 1e-4))
    of_pipelines = [row | {"axes": dict(row["axes"])} for row in rows]
    for row in of_pipelines:
        row["axes"]["pipeline"] = f"pipeline {row['axes'].pop('posttrain.tokens')}"
    for study, trials, names in (
        ("sizes", rows, ("|D_post| = 100k", "|D_post| = 300k")),
        ("pipelines", of_pipelines, ("pipeline 100000", "pipeline 300000")),
    ):
        _, svg = draw_losses(tmp_path, study, trials)
        for name in names:
            assert f"after post-training (L_im), {name}" in texts(svg)
