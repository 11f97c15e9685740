"""`retain search` on a real local Ray, where the closed forms of the linear model tell the best point."""

import statistics
from functools import cache
from pathlib import Path

import pytest

from retain.sweeps.schema.linear.closed_forms import Descent, flow_through, initial_strengths, mixture, squared_loss
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.recipes.linear import stopping_time
from tests.launchers.search.searches import THEORY, block
from tests.retain import retain_json

KEPT = ("retained_posttraining_loss", "retained_pretraining_loss")
"""What exposure and fine-tuning trade against each other, so that the best point lies inside of the space."""
AXES = {"pretrain.exposure": {"uniform": [0, 0.95]}, "finetune.time": {"uniform": [0.5, 4]}}
TRIALS = 40


@pytest.mark.slow
def test_a_search_on_ray_finds_the_optimum_that_the_closed_forms_tell(tmp_path: Path) -> None:
    space = block(axes=AXES, objective={"weighted": dict.fromkeys(KEPT, 1)}, trials=TRIALS, per_pretraining=2)
    document = retain_json("search", "theory", *THEORY, space, "execution.parallel=1", "--store", tmp_path)
    found = [sum(point["losses"][name] for name in KEPT) for point in document["points"]]
    exact = sorted(exact_loss(0.95 * a / 60, 0.5 + 3.5 * t / 60) for a in range(61) for t in range(61))
    assert len(found) == TRIALS
    # A hundredth of the space is as near to the optimum as this.
    assert min(found) < 1.015 * exact[0]
    (best,) = document["recommended"]
    assert sum(best["losses"][name]["mean"] for name in KEPT) == min(found)
    assert exact_loss(*best["values"].values()) == pytest.approx(min(found), rel=0.02)
    # Points drawn at random would have the median of the space.
    assert statistics.median(found[TRIALS // 2 :]) < exact[len(exact) // 3]


def exact_loss(exposure: float, time: float) -> float:
    """What the search minimises, by the closed forms of the theory study."""
    study = theory()
    linear, later = study.model.linear, study.posttrain
    pre, post, ft = linear.task("pre"), linear.task("post"), linear.task("ft")
    stages = [
        Descent(mixture(pre, post, exposure), stopping_time(study)),
        Descent(post, later.time, later.regularisation),
        Descent(ft, time, study.finetune.regularisation),
    ]
    end = flow_through(stages, initial_strengths(linear.features, linear.start))[-1]
    return squared_loss(post, end) + squared_loss(pre, end)


@cache
def theory() -> LinearStudy:
    study = read_study("theory", []).study
    assert isinstance(study, LinearStudy)
    return study
