import pytest

from sweeps.cost import PEAK_FLOPS, UTILISATION, total_cost
from sweeps.errors import StudyError
from sweeps.models import PRESETS, Architecture, flops_per_token, parameters
from tests.studies import tiny_tree

TWO = {"pretrain.exposure": [0, 1], "finetune.lr": [1e-4, 2e-4, 3e-4]}


@pytest.mark.parametrize(
    ("preset", "count", "gigaflops"), [("smollm2-135m", 134_515_008, 1.019), ("smollm2-1b", 1_029_917_376, 6.179)]
)
def test_the_papers_models_have_their_published_size_and_cost(preset: str, count: int, gigaflops: float) -> None:
    assert parameters(PRESETS[preset]) == count
    assert flops_per_token(PRESETS[preset], 1024) / 1e9 == pytest.approx(gigaflops, abs=6e-4)


def test_the_laptop_model_has_about_a_million_parameters_once_it_knows_its_tokeniser() -> None:
    laptop = PRESETS["laptop"]
    numbers = {name: getattr(laptop, name) for name in Architecture.__dataclass_fields__}
    assert parameters(Architecture(**numbers | {"vocabulary": 2048})) == pytest.approx(1.05e6, rel=0.01)


def test_totals_count_each_shared_stage_once() -> None:
    tree = tiny_tree(grid=TWO)
    totals = total_cost(tree, (), "H100")
    pretrain, mixed, posttrain, finetune = 7680, 7680 + 2560, 5120, 5120
    assert (totals.stages, totals.trials, totals.to_train, totals.jobs) == (10, 6, 10, 10)
    assert totals.tokens == totals.tokens_to_train == pretrain + mixed + 2 * posttrain + 6 * finetune
    assert totals.tokens_without_sharing == 3 * (pretrain + mixed) + 6 * (posttrain + finetune)


def test_what_the_store_has_costs_nothing_more() -> None:
    tree = tiny_tree(grid=TWO)
    everything = total_cost(tree, (), "H100")
    done = set(tree.trials[0].path)
    rest = total_cost(tree, done, "H100")
    assert rest.tokens == everything.tokens
    assert everything.tokens_to_train - rest.tokens_to_train == 7680 + 5120 + 5120
    assert rest.to_train == rest.jobs == 7
    assert rest.disk_bytes * 10 == everything.disk_bytes * 7
    nothing = total_cost(tree, tree.stages.keys(), "H100")
    assert (nothing.to_train, nothing.flops, nothing.gpu_hours, nothing.disk_bytes) == (0, 0.0, 0.0, 0)


def test_flops_gpu_hours_and_disk_follow_from_tokens_and_parameters() -> None:
    tree = tiny_tree(grid={})
    totals = total_cost(tree, (), "A100")
    model = Architecture(layers=2, hidden=32, heads=2, kv_heads=2, mlp=64, vocabulary=320, tied=True, context=64)
    assert totals.flops == (7680 + 5120 + 5120) * flops_per_token(model, 32)
    assert totals.gpu_hours * 3600 * PEAK_FLOPS["A100"] * UTILISATION == pytest.approx(totals.flops)
    assert totals.disk_bytes == 3 * 4 * parameters(model)


def test_each_stage_is_costed_at_its_own_trials_architecture() -> None:
    both = total_cost(tiny_tree(grid={"model.layers": [2, 4]}), (), "H100").flops
    alone = [total_cost(tiny_tree(grid={}, **{"model.layers": layers}), (), "H100").flops for layers in (2, 4)]
    assert both == sum(alone)


def test_a_faster_device_takes_fewer_hours_for_the_same_flops() -> None:
    tree = tiny_tree(grid={})
    slow, fast = (total_cost(tree, (), device) for device in ("A100", "H100"))
    assert slow.flops == fast.flops
    assert slow.gpu_hours / fast.gpu_hours == pytest.approx(989 / 312)


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StudyError, match="--device TPU: not known; the devices are A100, H100, H200, L40S"):
        total_cost(tiny_tree(grid={}), (), "TPU")
