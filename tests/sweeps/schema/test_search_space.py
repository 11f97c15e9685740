"""The `search:` section: its errors, and the points of its space."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.results.store.loss_table import loss_columns
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import check_study, read_study
from retain.sweeps.schema.search_space import Axis, Constraint, SearchSpace
from retain.sweeps.schema.section import LOSSES
from retain.sweeps.tree.evaluation_runs import corpora_after
from tests.studies import tiny_fields, tiny_study, tiny_tree

AXES = {"pretrain.exposure": {"uniform": [0, 1]}, "finetune.lr": {"loguniform": [1e-4, 1e-2]}}


def space(**block: Any) -> SearchSpace:
    search = check_study(tiny_fields(search={"axes": AXES} | block), Path("tiny.yaml")).search
    assert search is not None
    return search


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"axes": {}}, "search.axes: too few values; write at least 1"),
    ({"axis": AXES}, "search.axes: this field is required; add it (retain fields explains what it takes)"),
    ({"axes": AXES, "trails": 5}, "search.trails: unknown field; did you mean trials?"),
    ({"axes": {"pretrain.exposur": [0, 1]}}, "search.axes.pretrain.exposur: unknown field"),
    (
        {"axes": {"pretrain.exposure": {"uniform": [0, 2]}}},
        "search.axes.pretrain.exposure: 2 is more",
    ),
    ({"axes": {"pretrain.exposure": {"uniform": [1, 0]}}}, "search.axes.pretrain.exposure: uniform: [1, 0] is empty"),
    ({"axes": {"finetune.lr": {"loguniform": [0, 1]}}}, "search.axes.finetune.lr: loguniform: 0 has no logarithm"),
    ({"axes": {"finetune.lr": {"normal": [0, 1]}}}, "search.axes.finetune.lr: normal: unknown field"),
    ({"axes": {"finetune.lr": {}}}, "search.axes.finetune.lr: give one of uniform, loguniform or integers"),
    ({"axes": {"finetune.lr": 1e-3}}, "search.axes.finetune.lr: invalid axis 0.001; write a list of values"),
    ({"axes": {"finetune.lr": [1e-3, 1e-3]}}, "search.axes.finetune.lr: 0.001 is listed twice"),
    ({"axes": {"seed": [0, 1]}}, "search.axes.seed: seeds are replicates of a point, not an axis"),
    ({"axes": {"corpora": [1]}}, "search.axes.corpora: corpora cannot be an axis"),
    ({"axes": {"sequence_length": {"integers": [16, 32]}}}, "search.axes.sequence_length: a range is not possible"),
    (
        {"axes": {"posttrain": [{}], "posttrain.lr": [1]}},
        "search.axes.posttrain.corpus: this field is required; add it (retain fields explains what it takes)",
    ),
    (
        {"axes": AXES, "objective": "loss"},
        "search.objective: unknown loss 'loss'; the losses of this study are immediate_posttraining_loss,",
    ),
    ({"axes": AXES, "objective": {"weighted": {"finetuning_loss": 0}}}, "search.objective.weighted: all weights are 0"),
    (
        {"axes": AXES, "objective": {"hypervolume": ["finetuning_loss", "finetuning_loss"]}},
        "search.objective.hypervolume: both losses are the same; name two different ones",
    ),
    (
        {"axes": AXES, "constraints": {"finetuning_loss": {}}},
        "search.constraints.finetuning_loss: give either within: SHARE",
    ),
    ({"axes": AXES, "seeds": [1, 1]}, "search.seeds: 1 is listed twice"),
    (
        {"axes": AXES, "searcher": "bayes"},
        "search.searcher: unknown value (got 'bayes'); write random, grid, tpe or nsga2",
    ),
    ({"axes": AXES, "per_posttraining": 9}, "search.per_posttraining: must not exceed per_pretraining"),
    ({"axes": AXES, "probe": {"at": 1}}, "search.probe.at: must be less than 1"),
    ({"axes": AXES, "probe": {"at": 0}}, "search.probe.at: must be greater than 0"),
    ({"axes": AXES, "probe": {"factor": 1}}, "search.probe.factor: must be at least 2"),
    ({"axes": AXES, "probe": {"first": 0.5}}, "search.probe.first: unknown field"),
    (
        {"axes": AXES, "constraints": {"finetuning_loss": 0.01}},
        "search.constraints.finetuning_loss: write {within: 0.01} (a share of the best point's loss) or {at_most: NATS}",
    ),
    (
        {"axes": AXES, "objective": ["finetuning_loss", "retained_posttraining_loss"]},
        "search.objective: expected one loss; for a frontier write "
        "{hypervolume: [finetuning_loss, retained_posttraining_loss]}",
    ),
    (
        {"axes": AXES, "objective": {"hypervolume": ["finetuning_loss"]}},
        "search.objective.hypervolume: expected two losses; write [LOSS, LOSS]",
    ),
    (
        {"axes": {"pretrain.exposure": {"uniform": [0, 0.5, 1]}}},
        "search.axes.pretrain.exposure: uniform: write [lowest, highest], or a list of values without uniform",
    ),
    ({"axes": AXES, "seeds": 0}, "search.seeds: write a list: [0]"),
    (
        {"axes": {"pretrain.batch": {"uniform": [4, 8]}}},
        "search.axes.pretrain.batch: the field takes whole numbers only; write integers: [4, 8]",
    ),
    (
        {"axes": {"posttrain.warmup": {"loguniform": [1.5, 90.5]}}},
        "search.axes.posttrain.warmup: the field takes whole numbers only; write integers: [2, 90]",
    ),
    (
        {"axes": {"pretrain.batch": {"uniform": [4, 4.3]}}},
        "search.axes.pretrain.batch: the field takes whole numbers only; write a list",
    ),
    (
        {"axes": {"pretrain.tokens": {"uniform": [900, 9000]}}, "digits": 4},
        "search.axes.pretrain.tokens: the field takes whole numbers only; write integers: [900, 9000]",
    ),
    (
        {"axes": {"pretrain": {"exposure": [0, 1]}}},
        "search.axes.pretrain: write the axis as one dotted path: search: {axes: {pretrain.exposure: ...}}",
    ),
    (
        {"axes": AXES, "probe": {}, "objective": "immediate_posttraining_loss"},
        "search.probe: the search is for immediate_posttraining_loss only, which fine-tuning does not change",
    ),
]


@pytest.mark.parametrize(("block", "sentence"), INVALID, ids=[sentence[:60] for _, sentence in INVALID])
def test_an_invalid_search_section_is_one_sentence(block: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError) as caught:
        check_study(tiny_fields(search=block), Path("tiny.yaml"))
    assert str(caught.value).startswith(f"tiny.yaml: {sentence}")
    assert "\n" not in str(caught.value)


def test_a_search_may_name_every_loss_that_results_print_and_no_other() -> None:
    row = {"losses": {stage: names for (stage, _), names in corpora_after(tiny_tree()).items()}}
    for name in (*LOSSES, *loss_columns([row])):
        assert space(objective=name).block.losses() == (name,)
    with pytest.raises(
        StudyError, match=r"search.objective: unknown loss 'pretrain/musik' .did you mean pretrain/music\?.;"
    ):
        space(objective={"hypervolume": ["pretrain/musik", "finetuning_loss"]})


def test_axes_are_in_the_order_of_the_stages_and_the_grid_varies_the_last_one_fastest() -> None:
    found = space(
        axes={"finetune.lr": [1e-4, 1e-3], "posttrain.tokens": [1280, 2560], "posttrain.lr": {"uniform": [1e-3, 2e-3]}},
        grid_values=2,
    )
    # The size of D_post changes what is mixed into pretraining, so its axis belongs to pretraining.
    assert [(axis.path, axis.stage(found.chain)) for axis in found.axes] == [
        ("posttrain.tokens", "pretrain"),
        ("posttrain.lr", "posttrain"),
        ("finetune.lr", "finetune"),
    ]
    points = list(found.grid())
    assert len(points) == 8
    assert points[0] == {"posttrain.tokens": 1280, "posttrain.lr": 1e-3, "finetune.lr": 1e-4}
    assert [point["finetune.lr"] for point in points] == [1e-4, 1e-3] * 4


@given(st.floats(1e-6, 1e3), st.floats(1.001, 1e6), st.booleans(), st.integers(1, 6), st.floats(0, 1, exclude_max=True))
def test_values_of_a_range_are_rounded_and_stay_within_it(
    low: float, factor: float, log: bool, digits: int, share: float
) -> None:
    axis = Axis("finetune.lr", low=low, high=low * factor, log=log, digits=digits)
    value = axis.at(share)
    assert axis.low <= value <= axis.high
    assert value in (float(f"{value:.{digits}g}"), axis.low, axis.high)
    assert axis.rounded(value) == value
    assert axis.holds(value)


@given(st.integers(0, 50), st.integers(1, 50), st.floats(0, 1, exclude_max=True))
def test_values_of_an_integer_range_are_integers(low: int, more: int, share: float) -> None:
    axis = Axis("posttrain.warmup", low=low, high=low + more, whole=True)
    assert isinstance(axis.at(share), int)
    assert low <= axis.at(share) <= low + more
    assert all(isinstance(value, int) for value in axis.spread(4))


def test_overrides_reach_the_search_section_and_its_lists_do_not_become_grid_axes(tmp_path: Path) -> None:
    path = tiny_study(tmp_path, search={"axes": AXES})
    file = read_study(str(path), ["search.seeds=[3, 4]", "search.trials=7", "search.searcher=random"])
    assert file.search is not None
    assert (file.search.block.seeds, file.search.block.trials, file.search.block.searcher) == ([3, 4], 7, "random")
    assert list(file.axes) == ["pretrain.exposure", "finetune.lr"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("search=[x]", "search: expected a mapping with axes; write `search: {axes: {field: [a, b]}}`"),
        (
            "search.axes.pretrain.exposure=[0, 1]",
            "search.axes.pretrain: write the axis as one dotted path: search: {axes: {pretrain",
        ),
        ("search.seeds=0", "search.seeds: write a list: [0]"),
    ],
)
def test_an_invalid_override_of_the_search_section_is_one_sentence(
    override: str, sentence: str, tmp_path: Path
) -> None:
    path = tiny_study(tmp_path, search={"axes": AXES})
    with pytest.raises(StudyError) as caught:
        read_study(str(path), [override])
    assert str(caught.value).startswith(f"tiny.yaml: {sentence}")


@pytest.mark.parametrize(("ends", "digits"), [([10_000, 90_000], 3), ([100, 900], 3), ([1, 9], 1)])
def test_a_range_whose_rounded_values_are_all_whole_is_valid_for_a_field_of_whole_numbers(
    ends: list[int], digits: int
) -> None:
    (axis,) = space(axes={"pretrain.tokens": {"loguniform": ends}}, digits=digits).axes
    assert all(axis.at(share / 50) % 1 == 0 for share in range(50))


def test_choices_are_numbers_even_if_yaml_reads_them_as_text() -> None:
    found = space(axes={"finetune.lr": ["5e-5", "0.001"], "posttrain.tokens": ["2560"], "model": ["laptop"]})
    assert {axis.path: axis.choices for axis in found.axes} == {
        "finetune.lr": (5e-5, 1e-3),
        "posttrain.tokens": (2560,),
        "model": ("laptop",),
    }


@pytest.mark.parametrize("higher", [False, True])
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.floats(0, 0.5))
def test_the_best_value_is_within_any_share_of_itself_also_below_0(
    higher: bool, values: list[float], share: float
) -> None:
    low, high = min(values), max(values)
    best = high if higher else low
    constraint = Constraint(within=share)
    assert constraint.violation(best, low, high, higher) <= 0
    beyond = best + (-1 if higher else 1) * (share * abs(best) + 0.01)
    assert constraint.violation(beyond, low, high, higher) > 0


def test_prune_and_probe_are_off_by_default() -> None:
    assert (space().block.prune, space().block.probe) == (None, None)
    probe = space(probe={}).block.probe
    assert probe is not None
    assert (probe.at, probe.factor) == (0.25, 2)


def test_a_search_without_seeds_uses_the_seed_of_the_study() -> None:
    search = check_study(tiny_fields(seed=5, search={"axes": AXES}), Path("tiny.yaml")).search
    assert search is not None
    assert search.block.seeds == [5]


def test_an_objective_is_one_loss_a_weighted_sum_or_two_losses() -> None:
    losses = dict(zip(LOSSES, (1.0, 2.0, 3.0, 4.0), strict=True))
    assert space().block.objective.scores(losses) == (2.0,)
    weighted = {"weighted": {"finetuning_loss": 2, "immediate_posttraining_loss": 0.5}}
    assert space(objective=weighted).block.objective.scores(losses) == (6.5,)
    plane = {"hypervolume": ["finetuning_loss", "retained_posttraining_loss"]}
    assert space(objective=plane).block.objective.scores(losses) == (3.0, 2.0)


def test_values_of_a_search_may_be_valid_only_together() -> None:
    axes = {"model.hidden": {"integers": [24, 48]}, "model.heads": [3, 6], "model.kv_heads": [3]}
    search = check_study(tiny_fields(search={"axes": axes}), Path("tiny.yaml")).search
    assert search is not None
    assert {(point["model.hidden"], point["model.heads"]) for point in search.corners()} == {
        *((hidden, heads) for hidden in (24, 48) for heads in (3, 6))
    }
