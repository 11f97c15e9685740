"""The cost of a tree: tokens, FLOPs, GPU-hours, disk and jobs."""

from pathlib import Path

import pytest

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.models import (
    PRESETS,
    Architecture,
    adapter_parameters,
    flops_per_token,
    matrix_parameters,
    parameters,
)
from retain.sweeps.schema.read import check_study
from retain.sweeps.tree.cost import Parallelism, total_cost
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.throughput import PEAK_FLOPS, device_of, modelled_speed, utilisation, work_text
from retain.sweeps.tree.tree import expand
from tests.studies import LINEAR, tiny_tree

TWO = {"pretrain.exposure": [0, 1], "finetune.lr": [1e-4, 2e-4, 3e-4]}


@pytest.mark.parametrize(
    ("preset", "count", "gigaflops"), [("smollm2-135m", 134_515_008, 1.019), ("smollm2-1b", 1_029_917_376, 6.179)]
)
def test_the_papers_models_have_their_published_size_and_cost(preset: str, count: int, gigaflops: float) -> None:
    assert parameters(PRESETS[preset]) == count
    assert flops_per_token(PRESETS[preset], 1024) / 1e9 == pytest.approx(gigaflops, abs=6e-4)


def test_the_laptop_model_has_about_a_million_parameters_with_its_tokeniser() -> None:
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


def test_the_siblings_of_a_pack_are_one_job() -> None:
    tree = tiny_tree(grid=TWO)
    packed = total_cost(tree, (), "H100", parallelism={"finetune": Parallelism(pack=2)})
    # Each of two post-trainings has three fine-tunings: one job trains two of them, another job the third.
    assert packed.jobs == 2 + 2 + 2 * 2


def test_stages_in_the_store_cost_nothing() -> None:
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
    assert totals.gpu_hours * 3600 * PEAK_FLOPS["A100"] * utilisation(parameters(model)) == pytest.approx(totals.flops)
    assert totals.disk_bytes == 3 * 4 * parameters(model)


def test_adapters_save_the_gradients_of_frozen_matrices_and_untie_the_head_in_this_and_later_stages() -> None:
    adapted = {"posttrain.method": "lora", "posttrain.lora": {"rank": 2}}
    model = Architecture(layers=2, hidden=32, heads=2, kv_heads=2, mlp=64, vocabulary=320, tied=True, context=64)
    full, saved = total_cost(tiny_tree(grid={}), (), "A100"), total_cost(tiny_tree(grid={}, **adapted), (), "A100")
    adapters = adapter_parameters(model, 2, ("o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"))
    assert full.flops - saved.flops == 5120 * (2 * matrix_parameters(model) - 6 * adapters)
    assert saved.disk_bytes - full.disk_bytes == 2 * 4 * 320 * 32
    kept = tiny_tree(grid={}, **adapted, **{"posttrain.lora.targets": ["up_proj"]})
    assert total_cost(kept, (), "A100").disk_bytes == full.disk_bytes


def test_the_cost_of_a_stage_uses_the_architecture_of_its_own_trial() -> None:
    both = total_cost(tiny_tree(grid={"model.layers": [2, 4]}), (), "H100").flops
    alone = [total_cost(tiny_tree(grid={}, **{"model.layers": layers}), (), "H100").flops for layers in (2, 4)]
    assert both == sum(alone)


def test_a_faster_device_takes_fewer_hours_for_the_same_flops() -> None:
    tree = tiny_tree(grid={})
    slow, fast = (total_cost(tree, (), device) for device in ("A100", "H100"))
    assert slow.flops == fast.flops
    assert slow.gpu_hours / fast.gpu_hours == pytest.approx(989 / 312)


def test_estimated_speeds_are_near_published_ones_at_the_papers_model_sizes() -> None:
    small, large = PRESETS["smollm2-135m"], PRESETS["smollm2-1b"]
    assert modelled_speed(flops_per_token(small, 1024), parameters(small), "H100") == pytest.approx(388_000, rel=0.01)
    # llm-foundry: 148,289 tokens/s on an A100 for a 125M GPT, whose head has the same share of the parameters.
    assert modelled_speed(flops_per_token(small, 1024), parameters(small), "A100") == pytest.approx(148_289, rel=0.2)
    # The Smol Training Playbook: 42,000 tokens/s for its 1B model; llm-foundry: 48,910 for 1.31B.
    assert 42_000 < modelled_speed(flops_per_token(large, 1024), parameters(large), "H100") < 48_910 * 1.5
    assert utilisation(1_050_000) < utilisation(parameters(small)) < utilisation(parameters(large))


def test_measured_speeds_replace_estimates_for_the_same_device_and_number_of_devices() -> None:
    tree = tiny_tree(grid={})
    asked: list[tuple[str, int, str | None]] = []

    def measured(kind: str, model: str, work: str, devices: int, device: str | None) -> float | None:
        asked.append((kind, devices, device))
        return 1000.0 if (kind, devices, device) == ("pretrain", 4, "A100") else None

    estimated = total_cost(tree, (), "A100")
    two = total_cost(tree, (), "A100", measured, {"pretrain": Parallelism(devices=4)})
    pretrain = next(stage for stage in tree.stages.values() if stage.stage == "pretrain")
    share = estimated.gpu_hours * pretrain.tokens / estimated.tokens_to_train
    assert two.gpu_hours - estimated.gpu_hours == pytest.approx(pretrain.tokens / 1000 / 3600 * 4 - share)
    assert two.measured == {"A100": 1, "H100": 0, "H200": 0, "L40S": 0}
    assert two.gpu_hours_by_device["H100"] == estimated.gpu_hours_by_device["H100"]
    assert {device for _, _, device in asked} == set(PEAK_FLOPS)


def test_the_disk_peak_counts_the_checkpoints_of_all_stages_that_run_at_the_same_time() -> None:
    tree = tiny_tree(grid=TWO)
    one = total_cost(tiny_tree(grid={}), (), "H100").disk_bytes // 3
    apart = [total_cost(tree, (), "H100", parallelism={"finetune": Parallelism(at_a_time=n)}) for n in (2, 5, 64)]
    # Three checkpoints of four values take 12 times the weights; there are 2, 2 and 6 stages of a kind.
    assert [(totals.disk_peak_bytes - totals.disk_bytes) // one for totals in apart] == [2 * 12, 5 * 12, 6 * 12]
    assert apart[0].disk_bytes == 10 * one
    assert apart[0].freeable_bytes == 4 * one


def test_the_disk_peak_counts_the_checkpoints_that_done_stages_keep() -> None:
    tree = tiny_tree(grid=TWO)
    one = total_cost(tiny_tree(grid={}), (), "H100").disk_bytes // 3
    kept = total_cost(tree, (), "H100", parallelism={"finetune": Parallelism(at_a_time=2, keep_states=True)})
    # Two checkpoints of four values stay of each of the six fine-tunings. Three of each are there while two pretrainings train.
    assert kept.kept_checkpoint_bytes // one == 6 * 2 * 4
    assert (kept.disk_peak_bytes - kept.disk_bytes) // one == 6 * 2 * 4 + 2 * 12


def test_a_linear_study_saves_no_checkpoints() -> None:
    file = check_study(LINEAR, Path("linear.yaml"))
    totals = total_cost(expand(file, Facts("", 0, {})), (), "H100")
    assert totals.disk_peak_bytes == totals.disk_bytes > 0


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", None),
        ("NVIDIA GH200 480GB", None),
        ("", None),
    ],
)
def test_a_gpu_is_recognised_by_its_name(name: str, device: str | None) -> None:
    assert device_of(name) == device


def test_the_error_of_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(StudyError, match="--device TPU: unknown device; the devices are A100, H100, H200, L40S"):
        total_cost(tiny_tree(grid={}), (), "TPU")


def test_the_work_per_token_is_that_of_objective_and_anchor_whatever_their_strengths() -> None:
    plain = '{"early_stopping":null,"lr":0.1,"method":"full"}'
    dpo, stronger = (
        f'{{"lr":{lr},"method":"full","objective":{{"dpo":{beta},"reference":{{"corpus":"a"}}}}}}'
        for lr, beta in ((0.1, 0.1), (0.2, 0.5))
    )
    l2sp, ewc = '{"anchor":{"l2sp":0.1},"method":"full"}', '{"anchor":{"ewc":1.0,"fisher":{}},"method":"full"}'
    assert work_text(plain) == ""
    assert work_text(dpo) == work_text(stronger)
    assert len({work_text(recipe) for recipe in (plain, dpo, l2sp, ewc)}) == 4
