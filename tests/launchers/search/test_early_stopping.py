"""Which stages a search gives up before their end: post-trainings at rungs, fine-tunings at their probe."""

import json
from pathlib import Path

import pytest

from retain.launchers.jobs.submissions import new_submission, write_submission
from retain.launchers.search.early_stopping import (
    EarlyStopping,
    evaluate_every,
    heldout_curves,
    judge_losses,
    loss_at,
    losses_at_probe,
    places_of,
)
from retain.launchers.search.engine import Search
from retain.launchers.search.history import HELDOUT, History
from retain.launchers.search.request import SearchRequest, register_search
from retain.launchers.search.stage_jobs import GIVEN_UP, StageJobs
from retain.launchers.search.summary import summary_document
from retain.results.store.curves import CurveWriter, Point, heldout_curve
from retain.results.store.runs import Store
from retain.sweeps.schema.search_space import Probe, Rungs, SearchBlock
from retain.sweeps.tree.tree import Stage
from tests.launchers.search.searches import THEORY, block, finish, searching, train_alone, train_one
from tests.studies import tiny_study, write_corpus

RETAINED = "retained_posttraining_loss"
LEARNED = "finetuning_loss"
BOTH: set[tuple[str, int]] = {(RETAINED, 1), (LEARNED, 1)}


def at(retained: float, learned: float) -> dict[str, float]:
    return {RETAINED: retained, LEARNED: learned}


def test_the_worse_of_siblings_is_given_up_at_a_rung() -> None:
    def judged(own: float, *others: float) -> str | None:
        return judge_losses({HELDOUT: own}, [{HELDOUT: loss} for loss in others], {(HELDOUT, 1)}, 2, 250)

    assert places_of(Stage("k", "posttrain", "p", "{}", 1000, {}), Rungs()) == [250, 500]
    assert judged(3.5) is None  # the first at its rung
    assert judged(2.9, 3.0, 3.5) is None
    assert judged(3.0, 3.0, 3.5) is None  # as good as the best
    assert "held-out loss 3.5000 after 250 tokens" in (judged(3.5, 3.0, 2.9) or "")
    # The best half of four continues.
    assert judged(3.0, 2.9, 3.4, 3.5) is None
    assert judged(3.4, 2.9, 3.0, 3.5) is not None


def test_a_loss_counts_for_a_rung_if_it_was_measured_near_it() -> None:
    curve = [(240, 3.0), (480, 2.5), (1000, 2.0)]
    assert [loss_at(tokens, curve) for tokens in (250, 500, 700)] == [3.0, 2.5, None]


@pytest.mark.parametrize("wanted", [None, 7, 10, 99, 200, 1000])
@pytest.mark.parametrize("steps", [3, 143, 250, 1001])
def test_every_rung_is_evaluated_however_often_the_study_evaluates(steps: int, wanted: int | None) -> None:
    every = evaluate_every(0.25, steps, wanted)
    assert every <= (wanted or steps)
    curve = [(step, float(step)) for step in range(every, steps + 1, every)]
    assert loss_at(max(1, steps // 4), curve) is not None


def test_a_fine_tuning_that_half_of_the_others_dominate_is_given_up_at_its_probe() -> None:
    assert judge_losses(at(3, 3), [], BOTH, 2, 100) is None  # the first one there
    why = judge_losses(at(3, 3), [at(2, 2)], BOTH, 2, 100)
    assert why is not None
    assert "finetuning_loss 3.0000, retained_posttraining_loss 3.0000 after 100 tokens" in why
    # One of four, the judged one included, is less than half of them.
    assert judge_losses(at(3, 3), [at(2, 2), at(4, 4), at(5, 5)], BOTH, 2, 100) is None
    assert judge_losses(at(3, 3), [at(2, 2), at(4, 4), at(5, 5)], BOTH, 4, 100) is not None
    assert judge_losses(at(3, 3), [at(2, 2), at(3, 2.9), at(5, 5)], BOTH, 2, 100) is not None


def test_a_fine_tuning_that_trades_one_wanted_loss_for_another_is_kept() -> None:
    others = [at(2, 2)] * 9
    assert judge_losses(at(9, 1.9), others, BOTH, 2, 100) is None
    assert judge_losses(at(2, 2), others, BOTH, 2, 100) is None  # as good as they are
    assert judge_losses(at(9, 1.9), others, {(RETAINED, 1)}, 2, 100) is not None
    # With a loss that should be high, the domination is reversed.
    assert judge_losses(at(9, 2), others, {(RETAINED, -1), (LEARNED, 1)}, 2, 100) is None
    assert judge_losses(at(1, 2), others, {(RETAINED, -1), (LEARNED, 1)}, 2, 100) is not None
    # A loss that is not known decides nothing.
    assert judge_losses({LEARNED: 3.0}, others, BOTH, 2, 100) is None
    assert judge_losses(at(3, 3), [{LEARNED: 2.0}], BOTH, 2, 100) is None


def test_the_losses_that_decide_are_those_that_are_minimised_or_constrained() -> None:
    def directions(**fields: object) -> set[tuple[str, int]]:
        return SearchBlock.model_validate({"axes": {"finetune.lr": [1, 2]}} | fields).directions()

    assert directions() == {(RETAINED, 1)}
    assert directions(objective={"hypervolume": [LEARNED, RETAINED]}) == BOTH
    assert directions(objective={"weighted": {LEARNED: -2, RETAINED: 1, "retained_pretraining_loss": 0}}) == {
        (LEARNED, -1),
        (RETAINED, 1),
    }
    bound = {"immediate_posttraining_loss": {"within": 0.01}}
    assert directions(constraints=bound) == {(RETAINED, 1), ("immediate_posttraining_loss", 1)}


def test_at_its_probe_a_fine_tuning_has_the_losses_of_a_trial_that_ended_there() -> None:
    stage = Stage("k", "finetune", "p", "{}", 1000, {})
    assert places_of(stage, Probe(at=0.3)) == [300]
    before = {"pretraining": {"loss": 4.0}, "posttraining": {"loss": 2.0}}
    curves = {split: [(150, 9.0), (300, loss), (450, 0.0)] for split, loss in
              (("pretraining", 4.1), ("posttraining", 2.5), ("finetuning", 3.0))}  # fmt: skip
    assert losses_at_probe(300, before, curves, curves) == {
        "immediate_posttraining_loss": 2.0,
        RETAINED: 2.5,
        LEARNED: 3.0,
        "retained_pretraining_loss": 4.1,
    }
    assert losses_at_probe(300, before, {split: curve[:1] for split, curve in curves.items()}, curves) == {}
    # Splits are evaluated one after the other: nothing counts until the last one is there.
    assert losses_at_probe(300, before, curves | {"finetuning": curves["finetuning"][:1]}, curves) == {}


def test_stages_are_judged_while_they_train_and_stages_below_them_never_begin(tmp_path: Path) -> None:
    # 320 steps of a few milliseconds; pruning spares the last three quarters.
    long = {"posttrain.max_tokens": 20_480, "posttrain.batch": 2, "finetune.tokens": 20_480, "finetune.batch": 2}
    study = tiny_study(tmp_path / "study", **long)
    write_corpus(tmp_path / "study", "chemistry", 1_000)
    asked = block(
        axes={"posttrain.lr": [1e-3, 1e-6], "finetune.lr": [2e-3, 1e-6]},
        searcher="grid",
        objective=LEARNED,
        prune={"first": 0.25},
        probe={"at": 0.25},
    )
    search = searching(str(study), tmp_path / "runs", asked)
    finish(search)
    points = summary_document(search)["points"]
    assert [point["state"] for point in points] == ["done", "pruned", "pruned", "pruned"]
    # Two stages were given up long before their ends, each for a loss of its own curve.
    runs = {key: search.store.run(key) for key in search.history.pruned}
    by_kind = {run.spec()["stage"]: run for run in runs.values()}
    assert sorted(by_kind) == ["finetune", "posttrain"]
    for kind, run in by_kind.items():
        state = run.state()
        assert state.state == "planned"
        assert state.progress.tokens < state.progress.total
        place = state.progress.total // 4
        split = {"posttrain": "posttraining", "finetune": "finetuning"}[kind]
        assert f"{loss_at(place, heldout_curves(run)[split]):.4f}" in search.history.pruned[run.key]
    assert "tokens; 1 of the 1 comparable stages before it" in points[1]["reason"]
    assert points[2]["reason"] == points[3]["reason"]
    # Nothing below the post-training that was given up has begun.
    begun = [run.spec()["stage"] for run in search.store.runs() if run.state().attempts]
    assert sorted(begun) == ["finetune", "finetune", "posttrain", "posttrain", "pretrain"]
    # Losses at rungs and probes, and pruned points, survive a restart.
    again = searching(str(study), tmp_path / "runs", asked)
    assert again.history == search.history
    assert len(again.history.rungs) == len(again.history.probes) == 2
    assert again.next_stage() is None
    assert again.finished()


def test_a_finished_post_training_is_not_given_up(tmp_path: Path) -> None:
    # SLURM jobs may do this: the fine-tuning is handed out before the search notices the end of the post-training.
    asked = block(axes={"posttrain.lr": [0.02, 0.0002]}, searcher="grid", prune={"first": 0.25})
    search = searching("theory", tmp_path, asked, THEORY[0], THEORY[2])
    search.parallel = 2
    while (stage := next_of(search)).stage != "posttrain" or not search.history.rungs:
        train_one(search, stage)
    train_alone(search, stage)
    assert search.store.run(stage.key).is_done()
    tuned = next_of(search)
    assert (tuned.stage, tuned.parent) == ("finetune", stage.key)
    search.watched_at = 0.0
    search.watch()
    assert stage.key in search.history.rungs
    assert search.history.pruned == {}
    assert not search.given_up(tuned.key)


def test_stages_that_the_store_already_had_count_in_comparisons(tmp_path: Path) -> None:
    asked = {"axes": {"posttrain.lr": [0.02, 0.0002]}, "searcher": "grid", "prune": {"first": 0.25}}
    first = searching("theory", tmp_path, block(**asked, trials=1), THEORY[0], THEORY[2])
    finish(first)
    first.history.path.unlink()
    search = searching("theory", tmp_path, block(**asked), THEORY[0], THEORY[2])
    assert next_of(search).stage == "posttrain"
    (known,) = search.history.rungs
    assert known in search.history.found


def test_giving_up_the_fine_tuning_of_one_seed_gives_up_the_point_on_all_seeds(tmp_path: Path) -> None:
    asked = block(axes={"finetune.time": [1, 2]}, searcher="grid", seeds=[0, 1], probe={"at": 0.5})
    search = searching("theory", tmp_path, asked, *THEORY)
    search.parallel = 4
    while (stage := search.next_stage()) is not None:
        assert stage.stage == "pretrain"
    first, second = search.candidates
    tuned = [key for key, stage in first.tree.stages.items() if stage.stage == "finetune"]
    search.history.pruned[tuned[0]] = "it was dominated"
    assert [search.state_of(one) for one in (first, second)] == ["pruned", "running"]
    assert search.reason_of(first) == "it was dominated"
    assert search.given_up(tuned[1])
    # Stages that another point needs continue.
    assert not any(search.given_up(key) for key in second.tree.stages)
    assert all(candidate is not first for candidate in search.open_points())


def test_a_loss_at_a_rung_is_kept_while_a_new_attempt_rewrites_the_curve(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), Stage("k", "posttrain", "p", '{"corpus": "music"}', 1000, {})
    history = History(tmp_path / "search.json", "")
    blocks = SearchBlock.model_validate({"axes": {"posttrain.lr": [1, 2]}, "prune": {"first": 0.25}})
    ends = EarlyStopping(blocks, store, history)
    assert not ends.record(stage)
    write_curve(store, [(250, 3.0), (500, 2.5)])
    assert ends.record(stage)
    assert not ends.record(stage)
    write_curve(store, [(250, 3.0)])
    assert not EarlyStopping(blocks, store, history).record(stage)
    assert history.rungs == {"k": {"250": {HELDOUT: 3.0}, "500": {HELDOUT: 2.5}}}
    history.save()
    assert json.loads(history.path.read_text())["rungs"] == {"k": {"250": 3.0, "500": 2.5}}


def write_curve(store: Store, points: list[tuple[int, float]]) -> None:
    folder = store.run("k").folder
    folder.mkdir(exist_ok=True)
    CurveWriter(folder, [Point(heldout_curve("posttraining"), tokens, loss, 0.0) for tokens, loss in points])


def next_of(search: Search) -> Stage:
    stage = search.next_stage()
    assert stage is not None
    return stage


def test_a_restarted_driver_cancels_what_it_gave_up_and_leaves_alone_what_the_user_submitted_since(
    tmp_path: Path,
) -> None:
    search = searching("theory", tmp_path, block(axes={"finetune.time": [1, 2, 3]}, searcher="grid"), *THEORY)
    while len(search.candidates) < 3:
        search._add_point()
    left, taken, other = (key for key, stage in search.stages.items() if stage.stage == "finetune")
    search.history.pruned |= {left: "worse than its siblings", taken: "worse than its siblings"}
    driver = register_search(search.searched, SearchRequest("slurm", None, "H100"))
    submit(search, left)
    submit(search, other)
    assert driver.begin(pid=1)
    driver.stop("lost")
    submit(search, taken)  # as `retain submit search.yaml` does
    search.read_states()
    StageJobs(search, None)
    states = {key: search.store.run(key).state() for key in (left, taken, other)}
    assert [(state.state, state.reason) for state in states.values()] == [
        ("cancelled", GIVEN_UP),
        ("queued", None),
        ("queued", None),
    ]


def submit(search: Search, key: str) -> None:
    """Enter a stage as submitted, without SLURM."""
    submission = new_submission([key])
    write_submission(search.store, submission)
    assert search.store.run(key).queue(submission.token)
