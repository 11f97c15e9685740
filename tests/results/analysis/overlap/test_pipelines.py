"""Retention beside the overlap of corpora: which pipelines are compared, on which trials, and what the figure says."""

import csv
import itertools
from pathlib import Path
from typing import Any

import pytest

from retain.results.analysis.loss_planes import L_IM, L_RET
from retain.results.analysis.overlap.pipelines import FORGOTTEN, measured_pipelines
from retain.results.figures.overlap.retention import overlap_figures
from retain.results.store.loss_table import Row
from retain.sweeps.base.documents import write_document
from retain.sweeps.tree.overlap import Overlap, overlap_path, write_overlap
from retain.sweeps.tree.tree import Stage, Tree

CORPORA = ("music", "chemistry", "songs", "code")
PAIRS = [("music", "chemistry"), ("music", "songs"), ("songs", "chemistry"), ("code", "music")]


def overlap(one: str, other: str, distance: float) -> Overlap:
    return Overlap(
        [one, other],
        1000,
        [distance, distance, 2 * distance],
        [10, 10],
        [[1.0, 2.0], [3.0, 1.5]],
        [9, 9],
        1,
        [9, 9],
        [1, 1],
    )


def tree() -> Tree:
    stages = {
        f"{stage} {corpus}": Stage(f"{stage} {corpus}", stage, None, f'{{"corpus":"{corpus}"}}', 0, {})
        for stage, corpus in itertools.product(("posttrain", "finetune"), CORPORA)
    }
    return Tree("near", stages, [], False, {(corpus, 32): corpus for corpus in CORPORA})


def row(pair: tuple[str, str], forgotten: float | None, **axes: Any) -> Row:
    post, fine = pair
    keys = {"pretrain": "p", "posttrain": f"posttrain {post}", "finetune": f"finetune {fine}"}
    retained = None if forgotten is None else 2.0 + forgotten
    return {"axes": {"pipeline": "-".join(pair), **axes}, "keys": keys, L_IM: 2.0, L_RET: retained}


def rows() -> list[Row]:
    """Four pipelines, the further the more is forgotten, each with two seeds and two rates."""
    return [
        row(pair, 0.1 * number + rate + 0.01 * seed, **{"seed": seed, "finetune.lr": rate})
        for number, pair in enumerate(PAIRS)
        for seed, rate in itertools.product((0, 1), (0.5, 0.7))
    ]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for number, (one, other) in enumerate(PAIRS):
        write_overlap(tmp_path, overlap(*((other, one) if number % 2 else (one, other)), 0.1 * (1 + number)))
    return tmp_path


def test_each_pipeline_has_its_overlap_and_its_means_by_seed(store: Path) -> None:
    found = measured_pipelines(tree(), store, rows())
    assert [one.name for one in found] == [" → ".join(pair) for pair in PAIRS]
    assert [one.distances["unigrams"] for one in found] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    # What was kept in the other order is turned: D_post comes first.
    assert [one.distances["model"] for one in found] == [1.0, 1.5, 1.0, 1.5]
    assert [one.trials for one in found] == [4] * 4
    assert found[2].losses[FORGOTTEN] == pytest.approx({0: 0.8, 1: 0.81})
    assert found[2].mean(L_RET) == pytest.approx(2.805)


def test_only_settings_that_all_pipelines_have_count(store: Path) -> None:
    unfinished = [*rows()[:3], row(PAIRS[0], None, **{"seed": 1, "finetune.lr": 0.7}), *rows()[4:]]
    found = measured_pipelines(tree(), store, unfinished)
    assert [one.trials for one in found] == [3] * 4
    assert found[3].losses[FORGOTTEN] == pytest.approx({0: 0.9, 1: 0.81})


def test_pipelines_that_are_not_measured_are_left_out_and_fewer_than_three_make_no_figure(store: Path) -> None:
    overlap_path(store, *PAIRS[3]).unlink()
    assert [one.name for one in measured_pipelines(tree(), store, rows())] == [" → ".join(pair) for pair in PAIRS[:3]]
    write_document(overlap_path(store, *PAIRS[2]), {"corpora": ["damaged"]})
    assert measured_pipelines(tree(), store, rows()) == []
    assert overlap_figures(store, tree(), rows()) == []


def test_the_figure_has_a_panel_for_each_loss_and_distance_with_the_rank_correlation(store: Path) -> None:
    (figure,) = overlap_figures(store, tree(), rows())
    assert figure.png.exists()
    assert figure.svg.exists()
    assert [panel.title for panel in figure.panels] == [
        f"rank correlation {value}" for value in ("+1.00", "+1.00", "+0.45") * 2
    ]
    assert "4 pipelines on the settings that all of them have (4 trials each)" in figure.caption
    assert "by chance in 1 of 12 cases" in figure.caption
    with figure.data.open(newline="") as stream:
        kept = list(csv.DictReader(stream))
    assert len(kept) == 8
    assert float(kept[0][FORGOTTEN]) == pytest.approx(0.6)
