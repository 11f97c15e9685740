import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import retain
from retain.launchers.planning.opened_study import open_study
from retain.launchers.planning.register import register
from retain.results.analysis import throughput
from retain.results.analysis.throughput import measured_speeds
from retain.results.store import runs
from retain.results.store.index.states import shown_states
from retain.results.store.runs import Store
from retain.results.store.state import Attempt, Progress
from retain.sweeps.schema.read import check_study
from retain.sweeps.tree.throughput import model_text
from retain.sweeps.tree.tree import expand
from tests.results.runs import put_state
from tests.studies import made_up_facts, tiny_fields, tiny_study


def done(store: Store, key: str, speed: float, device: str | None, world: int = 1) -> None:
    """Enter a run as done at a speed in tokens per second."""
    run = store.run(key)
    attempts = (Attempt(0.0, "node", 1, world=world, end=1.0, tokens=1, cause="finished", device=device),)
    progress = Progress(tokens=1, total=1, tokens_per_second=speed)
    put_state(run, replace(run.state(), state="done", attempts=attempts, progress=progress))


def test_a_speed_is_the_median_of_done_runs_of_one_kind_model_devices_and_gpu(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = check_study(tiny_fields(grid={"seed": [0, 1, 2, 3]}), Path("tiny.yaml"))
    tree = expand(file, made_up_facts(file))
    register(tree, file, made_up_facts(file), store)
    roots = [key for key, stage in tree.stages.items() if stage.stage == "pretrain"]
    for key, speed, device in zip(
        roots, (10.0, 20.0, 60.0, 70.0), ("NVIDIA H100 NVL", "NVIDIA H100 NVL", "NVIDIA L40S", None), strict=True
    ):
        done(store, key, speed, device)
    model = model_text(store.run(roots[0]).spec()["recipe"])
    speeds = measured_speeds(store)
    assert speeds("pretrain", model, "", 1, "H100") == 15.0
    assert speeds("pretrain", model, "", 1, "L40S") == 60.0
    assert speeds("pretrain", model, "", 1, None) == 40.0
    assert speeds("pretrain", model, "", 1, "A100") is None
    assert speeds("pretrain", model, "", 2, "H100") is None
    assert speeds("finetune", model, "", 1, "H100") is None
    given = measured_speeds(store, shown_states(store, tree.stages))
    assert [given("pretrain", model, "", 1, device) for device in ("H100", "L40S", None)] == [15.0, 60.0, 40.0]


def test_a_plan_is_priced_by_what_its_store_has_measured(tmp_path: Path) -> None:
    study, store = tiny_study(tmp_path / "study", grid={"seed": [0, 1]}), Store(tmp_path / "runs")
    opened = open_study(str(study), [], store.root)
    before = retain.plan(str(study), store=store.root).totals
    assert before.measured["H100"] == 0
    store.root.mkdir()
    register(opened.tree, opened.file, opened.facts, store)
    first, second = [stage for stage in opened.tree.stages.values() if stage.stage == "pretrain"]
    done(store, first.key, 5.0, "NVIDIA H100 80GB HBM3")
    after = retain.plan(str(study), store=store.root).totals
    assert after.measured == {"A100": 0, "H100": 1, "H200": 0, "L40S": 0}
    assert after.gpu_hours > second.tokens / 5.0 / 3600 > before.gpu_hours


@pytest.mark.parametrize(
    "other",
    [
        {"finetune.method": "lora"},
        {"finetune.method": "lora", "finetune.lora": {"rank": 8}},
        {"finetune.method": "lora", "finetune.lora": {"targets": ["q_proj"]}},
        {"finetune.anchor": {"l2sp": 0.1}},
        {"finetune.anchor": {"ewc": 10, "sequences": 4}},
        {"finetune.optimizer": "muon"},
        {"documents": {"attention": "within"}},
    ],
    ids=lambda other: str(other),
)
def test_a_plan_is_not_priced_by_runs_whose_tokens_take_other_work(other: dict[str, Any], tmp_path: Path) -> None:
    store, changed = Store(tmp_path / "runs"), {"grid": {"finetune.seed": [0, 1]}} | other
    opened = open_study(str(tiny_study(tmp_path / "other", **changed)), [], store.root)
    store.root.mkdir()
    register(opened.tree, opened.file, opened.facts, store)
    done(store, opened.tree.trials[0].leaf, 5.0, "NVIDIA H100 80GB HBM3")
    plain = tiny_study(tmp_path / "plain", study="plain", grid={"finetune.lr": [1e-4, 2e-4]})
    assert retain.plan(str(plain), store=store.root).totals.measured["H100"] == 0
    again = retain.plan(str(plain), [f"{name}={json.dumps(value)}" for name, value in other.items()], store=store.root)
    assert again.totals.measured["H100"] == 2, "a learning rate changes no work"


def test_speeds_of_a_large_store_are_cached_and_follow_new_and_deleted_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    file = check_study(tiny_fields(grid={"seed": list(range(6))}), Path("tiny.yaml"))
    tree = expand(file, made_up_facts(file))
    register(tree, file, made_up_facts(file), store)
    roots = [key for key, stage in tree.stages.items() if stage.stage == "pretrain"]
    model = model_text(store.run(roots[0]).spec()["recipe"])
    monkeypatch.setattr(throughput, "WORTH_KEEPING", 3)

    for key, speed in zip(roots[:2], (10.0, 20.0), strict=True):
        done(store, key, speed, "NVIDIA L40S")
    measured_speeds(store)
    assert not (tmp_path / throughput.CACHE).exists()  # too few to keep

    done(store, roots[2], 90.0, "NVIDIA L40S")
    done(store, roots[3], 0.0, None)
    assert measured_speeds(store)("pretrain", model, "", 1, "L40S") == 20.0
    assert (tmp_path / throughput.CACHE).exists()

    done(store, roots[4], 100.0, "NVIDIA L40S")
    assert measured_speeds(store)("pretrain", model, "", 1, "L40S") == 55.0
    shutil.rmtree(store.run(roots[0]).folder)
    assert measured_speeds(store)("pretrain", model, "", 1, "L40S") == 90.0

    with mock.patch.object(runs, "_holds_run", wraps=runs._holds_run) as looked_at:
        assert measured_speeds(store)("pretrain", model, "", 1, "L40S") == 90.0
    assert {call.args[1] for call in looked_at.call_args_list} & set(roots) == set(roots[4:])

    earlier = json.loads((tmp_path / throughput.CACHE).read_text())
    for group in earlier["groups"]:
        del group["work"]
    for unusable in ("{", json.dumps(earlier)):
        (tmp_path / throughput.CACHE).write_text(unusable)
        assert measured_speeds(store)("pretrain", model, "", 1, "L40S") == 90.0
