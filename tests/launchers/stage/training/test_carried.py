"""AdamW carried from one stage to the next: one schedule over two stages, to the bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retain.datamodules.corpora.prepared import stored_tokenizer
from retain.datamodules.order.batches import stage_batches
from retain.launchers.checks.drill import compare
from retain.launchers.local.run import train_missing
from retain.launchers.planning.opened_study import OpenedStudy, prepare_study
from retain.launchers.planning.plan import plan_studies
from retain.launchers.planning.register import register
from retain.launchers.stage.attempt import attempt_code
from retain.launchers.stage.log import STOPPED
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import StopRequest
from retain.lightning_modules.models import build_model, parameter_groups
from retain.lightning_modules.objective import loss_and_gradient, summed_loss
from retain.lightning_modules.optimisation import learning_rate
from retain.results.store.garbage import check_starts
from retain.results.store.runs import Run
from retain.results.store.state import OPTIMIZER
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.models import Architecture
from tests.retain import train_here
from tests.studies import leave_out, tiny_study

DECAY = {"corpus": "general", "tokens": 2560, "skip": 5120, "lr": 3e-3, "batch": 8, "start": {"optimizer": "carry"}}
TRUNK: dict[str, Any] = {
    "stages": ["pretrain", "decay", "anneal"],
    "pretrain.tokens": 5120,
    "pretrain.min_lr": 3e-3,
    "decay": DECAY | {"min_lr": 1e-3},
    "anneal": DECAY | {"corpus": "music", "lr": 1e-3, "skip": 0},
    "grid": {"decay.seed": [0, 1]},
    "execution": {"accelerator": "cpu"},
}
"""A trunk at a constant rate, and two branches of two stages that each go on with its optimizer."""


def trunk_study(folder: Path, **overrides: Any) -> Path:
    return leave_out(tiny_study(folder, **TRUNK | overrides), "posttrain", "finetune")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> OpenedStudy:
    folder = tmp_path_factory.mktemp("carried")
    study = trunk_study(folder)
    states = train_here(study, folder / "runs")
    assert {state.state for state in states.values()} == {"done"}
    return prepare_study(str(study), (), folder / "runs")


def uninterrupted(opened: OpenedStudy, path: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The weights after all steps of a path in one loop, with one AdamW that never stops."""
    recipes: list[dict[str, Any]] = [json.loads(opened.tree.stages[key].recipe) for key in path]
    tokenizer = stored_tokenizer(opened.store.root, opened.facts.tokenizer)
    torch.set_num_threads(1)
    model = build_model(Architecture(**recipes[0]["model"]), recipes[0]["seed"], tokenizer.end_id)
    groups = parameter_groups(model, recipes[0]["weight_decay"])
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=tuple(recipes[0]["betas"]), fused=True)
    for recipe in recipes:
        batches = stage_batches(recipe, opened.store.root)
        for step in range(recipe["steps"]):
            tokens = torch.from_numpy(batches.tokens(step))
            for group in adamw.param_groups:
                group["lr"] = learning_rate(step, recipe["steps"], recipe["lr"], recipe["min_lr"], recipe["warmup"])
            loss = summed_loss(model, tokens, loss_and_gradient) * (1 / (len(tokens) * (tokens.shape[1] - 1)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
            adamw.step()
            adamw.zero_grad(set_to_none=True)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def model_of(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.model / "model.safetensors")


def test_a_trunk_and_the_stages_that_carry_its_adamw_are_one_uninterrupted_run_to_the_bit(trained: OpenedStudy) -> None:
    for trial in trained.tree.trials:
        whole, stages = uninterrupted(trained, trial.path), model_of(trained.store.run(trial.leaf))
        assert stages
        assert all(torch.equal(whole[name], weight) for name, weight in stages.items())


def test_a_stage_with_a_new_optimizer_ends_in_other_weights(trained: OpenedStudy) -> None:
    study, overrides = trained.file.path, ["decay.seed=0", "decay.start=null", "anneal.start=null"]
    train_here(study, trained.store.root, *overrides)
    new = prepare_study(str(study), overrides, trained.store.root)
    paths = trained.tree.trials[0].path, new.tree.trials[0].path
    assert paths[0][0] == paths[1][0]
    ours, theirs = (model_of(trained.store.run(path[1])) for path in paths)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_only_the_runs_that_a_stage_continues_from_keep_their_moments(trained: OpenedStudy) -> None:
    kept = {key for key in trained.tree.stages if (trained.store.run(key).model / OPTIMIZER).exists()}
    assert kept == trained.tree.carried() == {key for trial in trained.tree.trials for key in trial.path[:2]}
    assert all(f"model/{OPTIMIZER}" in trained.store.run(key).state().checksums for key in kept)


def test_a_carried_stage_that_is_stopped_at_any_step_ends_in_the_same_bits(
    trained: OpenedStudy, tmp_path: Path
) -> None:
    study = trunk_study(tmp_path, execution={"accelerator": "cpu", "save_steps": 1})
    again = prepare_study(str(study), ["decay.seed=0"], tmp_path / "runs")
    register(again.tree, again.file, again.facts, again.store)
    path = again.tree.trials[0].path
    stops = 0
    for key in path:
        for attempt in range(30):
            stop = StopRequest()
            # Every attempt but the last is stopped at its first step.
            stop.signal = "TERM" if attempt in (0, 1, 2) else None
            code, text = attempt_code(again.store, key, Ranks(), stop)
            if code == 0:
                break
            assert code == STOPPED, text
            stops += 1
    assert stops == 3 * len(path)
    assert compare(again.tree, trained.store, again.store) == []


def test_a_done_trunk_without_its_moments_is_said_to_lack_them_with_the_cure(tmp_path: Path) -> None:
    study = trunk_study(tmp_path, **{"anneal.start": None})
    new = prepare_study(str(study), ["decay.seed=0", "decay.start=null"], tmp_path / "runs")
    register(new.tree, new.file, new.facts, new.store)
    first = new.tree.trials[0].path[0]
    train_missing(new, replace(new.tree, stages={first: new.tree.stages[first]}))
    opened = prepare_study(str(study), ["decay.seed=0"], tmp_path / "runs")
    store = opened.store
    trunk = store.run(opened.tree.trials[0].path[0])
    assert trunk.is_done()
    with pytest.raises(
        MissingResourceError, match=rf"{trunk.key} was trained before any .* delete .*{trunk.key} and run"
    ):
        check_starts(store, opened.tree.stages, store.states(opened.tree.stages))
    note = plan_studies([str(study)], ["decay.seed=0"], store.root, "H100").notes[-1]
    assert note.startswith(trunk.key)


def test_all_trunks_without_their_moments_are_named_at_once(tmp_path: Path) -> None:
    study = trunk_study(tmp_path, **{"anneal.start": None})
    plain = ["decay.seed=0", "decay.start=null", "seed=[0,1]"]
    new = prepare_study(str(study), plain, tmp_path / "runs")
    register(new.tree, new.file, new.facts, new.store)
    trunks = {trial.path[0] for trial in new.tree.trials}
    train_missing(new, replace(new.tree, stages={key: new.tree.stages[key] for key in trunks}))
    opened = prepare_study(str(study), ["decay.seed=0", "seed=[0,1]"], tmp_path / "runs")
    with pytest.raises(MissingResourceError) as refused:
        check_starts(opened.store, opened.tree.stages, opened.store.states(opened.tree.stages))
    assert len(trunks) == 2
    assert all(str(opened.store.run(key).folder) in str(refused.value) for key in trunks)
