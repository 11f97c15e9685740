"""Frontiers in planes that a user names."""

import csv
from pathlib import Path

import pytest

from retain.results.figures.planes import NamedPlane, draw_planes, named_planes
from retain.results.store.loss_table import Row
from retain.sweeps.base.errors import StudyError
from tests.results.made_rows import method_rows

ACC, CODE = "finetune/quiz/acc", "finetune/code"


def rows_with_measures() -> list[Row]:
    """Trials with a loss on a further corpus, and a metric that falls as the retained loss rises."""
    rows = method_rows([None], ("unmixed", "mixed"), unfinished=2)
    for row in rows:
        retained = row["retained_posttraining_loss"]
        code = None if retained is None else 2 * retained
        row["losses"] = {"pretrain": {}, "posttrain": {}, "finetune": {"code": code}}
        row["measures"] = {"finetune": {"quiz/acc": None if retained is None else 1 / retained}}
    return rows


def test_a_plane_names_columns_of_the_loss_table_or_symbols_of_the_paper() -> None:
    planes = named_planes([f"{ACC}, L_ft", f"L_ret,{CODE}", f"{ACC},L_ft"], rows_with_measures())
    assert planes == [NamedPlane(ACC, "finetuning_loss"), NamedPlane("retained_posttraining_loss", CODE)]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("L_ret", "--plane L_ret: a plane is two different losses or metrics, Y,X, such as L_ret,L_ft"),
        ("L_ft,finetuning_loss", "--plane L_ft,finetuning_loss: a plane is two different losses or metrics"),
        (f"finetune/quiz/ac,{CODE}", f"unknown loss 'finetune/quiz/ac' (did you mean {ACC}?)"),
    ],
)
def test_an_impossible_plane_is_refused_in_a_sentence(asked: str, sentence: str) -> None:
    with pytest.raises(StudyError) as error:
        named_planes([asked], rows_with_measures())
    assert sentence in str(error.value)


def test_the_frontier_of_a_metric_is_that_of_its_highest_values(tmp_path: Path) -> None:
    rows = rows_with_measures()
    plain, turned = draw_planes(tmp_path, "mine", rows, named_planes([f"{CODE},L_ft", f"{ACC},L_ft"], rows), {ACC})
    assert (plain.missing, turned.missing) == (2, 2)
    with turned.data.open(newline="") as stream:
        points = list(csv.DictReader(stream))
    assert {point["y_is"] for point in points} == {f"-{ACC}"}
    for method in ("unmixed", "mixed"):
        own = [row["measures"]["finetune"]["quiz/acc"] for row in rows if row["axes"]["method"] == method]
        best = max(value for value in own if value is not None)
        line = [float(point["y"]) for point in points if point["kind"] == "line" and point["line"] == method]
        assert min(line) == pytest.approx(-best)
        with plain.data.open(newline="") as stream:
            same = [one for one in csv.DictReader(stream) if one["kind"] == "line" and one["line"] == method]
        # 1 / loss is best where twice the loss is.
        assert float(same[-1]["y"]) == pytest.approx(2 / best)
    assert turned.png.exists()
