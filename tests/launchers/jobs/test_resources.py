"""What a stage is submitted with: per stage, over the site's profile, with a walltime from measured speeds."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.jobs.resources import Resources, as_executions, slurm_resources
from retain.launchers.jobs.sbatch import Family, families, planned_families, sbatch_script
from retain.launchers.planning.register import register, register_evaluations
from retain.launchers.slurm.partitions import NodeGroup, Partition, parse_config, parse_nodes, parse_partitions
from retain.results.store.runs import Store
from retain.results.store.state import Attempt, Progress
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import StudyFile, check_study
from retain.sweeps.schema.sites import Site
from retain.sweeps.tree.evaluation_runs import asked_evaluations
from retain.sweeps.tree.tree import Tree, expand
from tests.results.runs import put_state
from tests.retain import train_here
from tests.studies import made_up_facts, tiny_fields, tiny_study

BIG = {"pretrain.tokens": 3_000_000, "posttrain.tokens": 300_000, "posttrain.max_tokens": None}
PARTITION = (
    "PartitionName=low Default=YES GraceTime=5 MaxTime=1-02:30:00 PreemptMode=REQUEUE State=UP TotalNodes=1.5K "
    "TRES=cpu=256,mem=4000000M,node=4,billing=256,gres/gpu=32"
)


def opened(**overrides: Any) -> tuple[StudyFile, Tree]:
    file = check_study(tiny_fields(**(BIG | overrides)), Path("tiny.yaml"))
    return file, expand(file, made_up_facts(file))


def partition(name: str = "low", max_minutes: int | None = None, default: bool = True) -> Partition:
    return Partition(name, default, "UP", 4, 32, max_minutes, "OFF", 0)


def by_kind(tree: Tree, resources: Mapping[str, Resources]) -> dict[str, set[int | None]]:
    found: dict[str, set[int | None]] = {}
    for key, own in resources.items():
        found.setdefault(tree.stages[key].stage, set()).add(own.execution.slurm.minutes)
    return found


def measured(store: Store, file: StudyFile, tree: Tree, speed: float, kind: str = "pretrain", world: int = 1) -> None:
    """Enter the tree, and one run of a kind as done at a speed in tokens per second."""
    store.root.mkdir(exist_ok=True)
    register(tree, file, made_up_facts(file), store)
    run = store.run(next(key for key, stage in tree.stages.items() if stage.stage == kind))
    attempts = (Attempt(0.0, "node", 1, world=world, end=1.0, tokens=1, cause="finished"),)
    progress = Progress(tokens=1, total=1, tokens_per_second=speed)
    put_state(run, replace(run.state(), state="done", attempts=attempts, progress=progress))


def test_walltimes_come_from_the_speed_of_done_runs_of_the_same_kind_and_model(tmp_path: Path) -> None:
    store, (file, tree) = Store(tmp_path / "runs"), opened()
    assert by_kind(tree, slurm_resources(tree, file, store, None, [])) == {
        "pretrain": {240},
        "posttrain": {240},
        "finetune": {240},
    }
    measured(store, file, tree, speed=1000.0)
    largest = max(stage.tokens for stage in tree.stages.values() if stage.stage == "pretrain")
    wanted = -(-largest * 3 // (2 * 60_000)) + 10
    assert by_kind(tree, slurm_resources(tree, file, store, None, [])) == {
        "pretrain": {wanted},
        "posttrain": {240},
        "finetune": {240},
    }
    other, others_tree = opened(**{"model.layers": 3})
    assert by_kind(others_tree, slurm_resources(others_tree, other, store, None, []))["pretrain"] == {240}
    wide, wide_tree = opened(**{"execution.devices": 2})
    assert by_kind(wide_tree, slurm_resources(wide_tree, wide, store, None, []))["pretrain"] == {240}


def test_a_walltime_is_not_that_of_runs_whose_tokens_take_other_work(tmp_path: Path) -> None:
    """LoRA takes less work per token; an array with both kinds has the walltime of the slower one."""
    store, (file, tree) = Store(tmp_path / "runs"), opened(grid={}, **{"finetune.method": "lora"})
    measured(store, file, tree, speed=5.0, kind="finetune")
    full_file, full = opened(grid={})
    assert by_kind(full, slurm_resources(full, full_file, store, None, []))["finetune"] == {240}
    measured(store, full_file, full, speed=2.0, kind="finetune")
    assert by_kind(full, slurm_resources(full, full_file, store, None, []))["finetune"] == {5120 * 3 // 2 // 120 + 10}
    assert by_kind(tree, slurm_resources(tree, file, store, None, []))["finetune"] == {-(-5120 * 3 // 2 // 300) + 10}
    both_file, both = opened(grid={"finetune.method": ["full", "lora"]})
    assert by_kind(both, slurm_resources(both, both_file, store, None, []))["finetune"] == {5120 * 3 // 2 // 120 + 10}


def test_siblings_have_one_walltime_so_that_they_are_one_array(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    file, tree = opened(grid={"finetune.tokens": [6_400, 640_000]})
    measured(store, file, tree, speed=100.0, kind="finetune")
    assert by_kind(tree, slurm_resources(tree, file, store, None, []))["finetune"] == {640_000 * 3 // 2 // 6000 + 10}


@pytest.mark.parametrize(
    ("site", "partitions", "minutes", "whose"),
    [
        (Site(minutes=100), [partition(max_minutes=200)], 100, "the limit of the site's profile"),
        (Site(minutes=100), [partition(max_minutes=60)], 60, "the limit of partition low"),
        (None, [partition("other", 20, default=False), partition(max_minutes=90)], 90, "partition low"),
        (Site(partition="a,b"), [partition("a", 70), partition("b", 50), partition("c", 9)], 50, "partition b"),
        (None, [partition()], 240, "no done run"),
    ],
)
def test_a_default_walltime_is_cut_to_what_site_and_partition_allow(
    site: Site | None, partitions: list[Partition], minutes: int, whose: str, tmp_path: Path
) -> None:
    file, tree = opened()
    for own in slurm_resources(tree, file, Store(tmp_path), site, partitions).values():
        assert own.execution.slurm.minutes == minutes
        assert own.walltime.startswith(f"{minutes} minutes: ")
        assert whose in own.walltime


def test_a_walltime_that_the_study_gives_is_kept_or_refused(tmp_path: Path) -> None:
    file, tree = opened(execution={"slurm": {"minutes": 90}, "stages": {"finetune": {"slurm": {"minutes": 5}}}})
    found = by_kind(tree, slurm_resources(tree, file, Store(tmp_path), Site(minutes=60), [partition(max_minutes=90)]))
    assert found == {"pretrain": {90}, "posttrain": {90}, "finetune": {5}}
    with pytest.raises(StudyError, match=r"execution\.slurm\.minutes: 90 is more than partition low allows \(80\)"):
        slurm_resources(tree, file, Store(tmp_path), None, [partition(max_minutes=80)])


@pytest.mark.parametrize(
    ("execution", "complaint"),
    [
        (
            {"devices": 8},
            r"execution\.devices: a stage asks for 8 GPUs on a node, and partition low has at most 4, .*nodes",
        ),
        ({"devices": 8, "slurm": {"nodes": 2}}, None),
        ({"devices": 8, "accelerator": "cpu"}, None),
        (
            {"devices": 8, "accelerator": "cpu", "slurm": {"cpus": 4}},
            r"slurm\.cpus: a stage asks for 32 CPUs on a node",
        ),
        (
            {"devices": 6, "slurm": {"nodes": 6}},
            r"slurm\.nodes: a stage asks for 6 nodes, and partition low has at most 5",
        ),
        ({"slurm": {"memory_gb": 501}}, r"slurm\.memory_gb: a stage asks for 513024 MB on a node"),
        ({"slurm": {"partition": "high"}}, r"1 GPUs on a node, and partition high has at most 0, .*accelerator=cpu"),
        ({"devices": 8, "slurm": {"partition": "low,unknown"}}, r"partition low has at most 4"),
        ({"devices": 8, "slurm": {"partition": "unknown"}}, None),
        ({"devices": 8, "slurm": {"gres": "gpu:whole:1"}}, None),
    ],
)
def test_a_stage_that_no_node_of_its_partition_can_hold_is_refused_at_submission(
    execution: dict[str, Any], complaint: str | None, tmp_path: Path
) -> None:
    low = replace(partition(), groups=(NodeGroup(3, 4, 16, 500_000), NodeGroup(2, 0, 16, 500_000)))
    high = replace(partition("high", default=False), groups=(NodeGroup(9, 0, 16, 1),))
    file, tree = opened(execution=execution)
    with pytest.raises(StudyError, match=complaint) if complaint else nullcontext():
        slurm_resources(tree, file, Store(tmp_path), None, [low, high])


def test_a_warning_that_would_come_at_the_start_of_a_job_is_refused(tmp_path: Path) -> None:
    file, tree = opened(**{"execution.slurm": {"minutes": 5, "warning_seconds": 300}})
    with pytest.raises(StudyError, match=r"warning_seconds: a warning 300 s before the end .* of a job of 5 minutes"):
        slurm_resources(tree, file, Store(tmp_path), None, [])


def test_running_here_leaves_what_a_stage_was_submitted_with(tmp_path: Path) -> None:
    file, tree = opened(**{"execution.slurm": {"minutes": 5}})
    store, site = Store(tmp_path), Site.model_validate({"partition": "low"})
    register(tree, file, made_up_facts(file), store, as_executions(slurm_resources(tree, file, store, site, [])))
    register(tree, file, made_up_facts(file), store)
    assert {run.spec()["execution"]["slurm"]["partition"] for run in store.runs()} == {"low"}


def test_stage_json_says_what_each_stage_really_uses(tmp_path: Path) -> None:
    file, tree = opened(execution={"stages": {"finetune": {"micro_batch": 2, "slurm": {"qos": "short"}}}})
    store = Store(tmp_path)
    register(tree, file, made_up_facts(file), store)
    for stage in tree.stages.values():
        assert store.run(stage.key).spec()["execution"]["micro_batch"] == (2 if stage.stage == "finetune" else None)
    executions = as_executions(slurm_resources(tree, file, store, Site(account="me"), []))
    register(tree, file, made_up_facts(file), store, executions)
    for stage in tree.stages.values():
        slurm = store.run(stage.key).spec()["execution"]["slurm"]
        assert (slurm["account"], slurm["minutes"]) == ("me", 240)
        assert slurm["qos"] == ("short" if stage.stage == "finetune" else None)


def script(store: Store, **execution: Any) -> str:
    """What the pretraining of the tiny study would be submitted with."""
    store.root.mkdir(exist_ok=True)
    file, tree = opened(execution=execution)
    resources = slurm_resources(tree, file, store, Site(gres="gpu:h100:{gpus}", environment={"LEVEL": "a b"}), [])
    register(tree, file, made_up_facts(file), store, as_executions(resources))
    roots = [key for key, stage in tree.stages.items() if stage.parent is None]
    return sbatch_script(store, families(store, roots)[0], None, store.root / "code")


def test_a_job_asks_for_what_its_stage_uses_and_goes_without_a_network(tmp_path: Path) -> None:
    lines = script(Store(tmp_path), devices=4, slurm={"nodes": 2, "setup": ["module load x"]}).splitlines()
    asked = {"--nodes=2", "--ntasks-per-node=2", "--gres=gpu:h100:2", "--time=240", "--requeue", "--cpus-per-task=2"}
    assert {f"#SBATCH {word}" for word in asked} <= set(lines)
    setup = [lines.index(line) for line in ("export LEVEL='a b'", "module load x")]
    assert (
        setup[0]
        < setup[1]
        < next(index for index, line in enumerate(lines) if line.startswith(f"export PYTHONPATH={tmp_path}"))
    )
    assert {"export HF_HUB_OFFLINE=1", "export SRUN_CPUS_PER_TASK=2"} <= set(lines)
    assert not [line for line in lines if "gpus-per-node" in line or "wckey" in line]


def test_a_gres_that_is_no_gpu_is_asked_for_beside_the_gpus_and_a_cpu_stage_asks_for_none(tmp_path: Path) -> None:
    beside = script(Store(tmp_path / "beside"), devices=2, slurm={"gres": "scratch:100"}).splitlines()
    assert {"#SBATCH --gres=scratch:100", "#SBATCH --gpus-per-node=2"} <= set(beside)
    assert "#SBATCH --g" not in script(Store(tmp_path / "cpu"), accelerator="cpu")


def test_an_option_that_is_true_has_no_value_and_one_that_is_false_is_left_out(tmp_path: Path) -> None:
    options = {"exclusive": False, "hold": True, "hint": "nomultithread", "nice": "010"}
    lines = script(Store(tmp_path), slurm={"extra": options}).splitlines()
    assert {"#SBATCH --hold", "#SBATCH --hint=nomultithread", "#SBATCH --nice=010"} <= set(lines)
    assert not [line for line in lines if "exclusive" in line]


def test_a_stage_trains_with_its_own_number_of_processes_here_too(tmp_path: Path) -> None:
    study, store = tiny_study(tmp_path / "study", grid={}), tmp_path / "runs"
    states = train_here(study, store, "execution.stages.finetune={devices: 2, micro_batch: 2}")
    kinds = {key: json.loads((store / key / "stage.json").read_text())["stage"] for key in states}
    worlds = {kinds[key]: state.attempts[-1].world for key, state in states.items()}
    assert worlds == {"pretrain": 1, "posttrain": 1, "finetune": 2}
    assert {state.state for state in states.values()} == {"done"}


def test_what_scontrol_prints_is_read() -> None:
    assert parse_partitions(f"{PARTITION}\nPartitionName=any MaxTime=UNLIMITED State=DOWN\n") == [
        Partition("low", True, "UP", 1536, 32, 26 * 60 + 30, "REQUEUE", 5),
        Partition("any", False, "DOWN", 0, 0, None, "OFF", 0),
    ]
    assert parse_nodes(
        "CLUSTER: a\nlow|3|gpu:a100:4(S:0-1),nvme:1|64|512000\nany|1|gpu:a:1,gpu:b:2|8|1\nany|2|(null)|8|1\n"
    ) == {
        "low": [NodeGroup(3, 4, 64, 512000)],
        "any": [NodeGroup(1, 3, 8, 1), NodeGroup(2, 0, 8, 1)],
    }
    config = "Configuration data as of now\nKillWait      = 30 sec\nAuthInfo = a=b,cred_expire=5\nProlog = (null)\n"
    assert parse_config(config) == {"KillWait": "30 sec", "AuthInfo": "a=b,cred_expire=5", "Prolog": ""}


def test_evaluations_of_many_stages_share_jobs_that_start_after_all_of_them(tmp_path: Path) -> None:
    """However many evaluations there are, one job has at most 64: the list of the jobs that it waits for stays short."""
    store = Store(tmp_path / "runs")
    file, tree = opened(
        grid={"seed": list(range(30))},
        evaluate={"corpora": ["extra"], "at": ["posttrain", "finetune"]},
        **{"corpora.extra": {"files": "music.jsonl"}, "execution.devices": 2},
    )
    asked = asked_evaluations(tree, {("extra", 32): 3_200})
    found = slurm_resources(tree, file, store, None, [], asked)
    assert found.keys() == tree.stages.keys() | asked.keys()
    own = found[next(iter(asked))].execution
    assert (own.devices, own.slurm.minutes) == (1, 240)
    store.root.mkdir()
    register(tree, file, made_up_facts(file), store, as_executions(found))
    register_evaluations(asked, tree, file, made_up_facts(file), store, as_executions(found))
    made = families(store, [*tree.stages, *asked])
    posttrain, finetune = [family for family in made if family.stage == "evaluate"]
    assert [(len(one.keys), len(one.needs), one.pack) for one in (posttrain, finetune)] == [(30, 30, 1000)] * 2
    assert {tree.stages[key].stage for key in posttrain.needs} == {"posttrain"}
    assert "--ntasks-per-node=1" in sbatch_script(store, finetune, None, tmp_path)
    assert {len(family.keys) for family in _families_of(90)} == {64, 26}


def _families_of(count: int) -> list[Family]:
    file, tree = opened(
        grid={"seed": list(range(count))},
        evaluate={"corpora": ["extra"], "at": ["finetune"]},
        **{"corpora.extra": {"files": "music.jsonl"}},
    )
    asked = asked_evaluations(tree)
    found = slurm_resources(tree, file, Store(Path("none")), None, [], asked)
    part = replace(tree, stages=tree.stages | asked)
    return [one for one in planned_families(part, list(asked), as_executions(found)) if one.stage == "evaluate"]
