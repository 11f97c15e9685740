"""`retain run --until decided`: seeds are added at looks that are fixed before training, and a report counts all looks."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retain.launchers.cli.app import main
from retain.launchers.planning.judged import begin_looks, planned_looks
from retain.launchers.planning.looks import Schedule, schedule
from retain.launchers.planning.opened_study import open_study, prepare_study
from retain.launchers.planning.register import register
from retain.results.analysis.effects import effect_of
from retain.results.claims.looks import Look
from retain.results.store.study_files import LOOKS, looks_of
from retain.sweeps.schema.read import check_study
from tests.results.runs import finish
from tests.retain import retain_json, start, weights
from tests.studies import linear_study, tiny_fields, tiny_study

GRID = {"pretrain.exposure": [0, 1]}
THREE = {**GRID, "seed": [0, 1, 2]}
Loss = Callable[[int], float]
"""How much lower L_ret is at λ = 1 at a seed, in nats."""


def clear(seed: int) -> float:
    return 0.4 + 0.05 * Random(seed).gauss(0, 1)


def hidden(seed: int) -> float:
    return 0.2 * (-1) ** seed


def made(folder: Path, saved: Loss, most: int = 9, grid: dict[str, list[Any]] = THREE, **overrides: Any) -> list[str]:
    """A study whose looks are fixed and whose stages are finished by hand at all seeds; the arguments that name it."""
    study, store = tiny_study(folder, grid=grid, **overrides), folder / "runs"
    prepare_study(str(study), (), store)
    planned = planned_looks(str(study), (), store, most, None)
    assert isinstance(planned, Schedule)
    begin_looks(str(study), (), store, planned)
    finish_seeds(study, store, planned.seeds, saved)
    return [str(study), "--store", str(store)]


def finish_seeds(study: Path, store: Path, seeds: list[int], saved: Loss) -> None:
    opened = open_study(str(study), [f"seed={seeds}"], store, remember=False)
    register(opened.tree, opened.file, opened.facts, opened.store)
    for stage in opened.tree.stages.values():
        seed, exposure = stage.axes["seed"], stage.axes["pretrain.exposure"]
        fall = saved(seed) * exposure if stage.stage == "finetune" else 0.0
        finish(opened.store.run(stage.key), 3.0 - fall + 0.01 * Random(stage.key).gauss(0, 1))


def ran(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """What a verb prints on standard output, or on standard error if it fails."""
    capsys.readouterr()
    assert main(arguments) == code
    printed = capsys.readouterr()
    return printed.err if code else printed.out


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    document = json.loads(ran(capsys, "report", *arguments, "--json"))
    return {verdict["claim"]: verdict for verdict in document["verdicts"]}


def test_it_stops_at_the_look_that_decides_every_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = made(tmp_path, clear)
    found = json.loads(ran(capsys, "run", *where, "--until", "decided", "--json"))
    looks = found["looks"]
    assert looks["counts"] == [3, 5, 7, 9]
    assert looks["seeds"] == list(range(9))
    assert 1 <= len(looks["made"]) < 4
    last = looks["made"][-1]
    assert all(verdict["outcome"] != "undecided" for verdict in last["verdicts"])
    assert {row["axes"]["seed"] for row in found["trials"]} == set(range(last["seeds"]))
    text = ran(capsys, "run", *where, "--until", "decided")
    assert f"Every verdict is decided (2): stopped after look {len(looks['made'])} of 4" in text
    assert looks_of(tmp_path / "runs", "tiny") == looks
    # Every verb that reads the study shows the seeds that were added.
    assert len(json.loads(ran(capsys, "results", *where, "--json"))["trials"]) == 2 * last["seeds"]


def test_a_report_has_the_intervals_of_the_look_that_decided_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = made(tmp_path, clear)
    ran(capsys, "run", *where, "--until", "decided")
    looks = looks_of(tmp_path / "runs", "tiny")
    assert looks is not None
    found = report(capsys, *where)
    for verdict in looks["made"][-1]["verdicts"]:
        shown = found[verdict["claim"]]
        assert shown["outcome"] == verdict["outcome"]
        look = Look(verdict["look"], (3, 5, 7, 9))
        assert shown["look"] == {"number": look.number, "of": 4, "seeds": look.seeds}
        assert f"{look.seeds} seeds, look {look.number} of 4" in shown["sentence"]
        assert shown["effects"][0]["level"] == looks["made"][look.number - 1]["level"] > 0.95
        assert shown["effects"][0]["seeds"] == look.seeds
    page = (tmp_path / "runs" / "studies" / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "The looks, planned before training: at 3, 5, 7, 9 seeds." in page
    assert "Intervals are therefore wider" in page


def test_what_stays_undecided_at_the_most_seeds_is_said_in_a_sentence_and_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = made(tmp_path, hidden, most=6)
    text = ran(capsys, "run", *where, "--until", "decided")
    assert "undecided at the most seeds: stopped after look 3 of 3, at 6 seeds." in text
    before = looks_of(tmp_path / "runs", "tiny")
    ran(capsys, "run", *where, "--until", "decided", "--most", "6", "--block", "2")
    assert looks_of(tmp_path / "runs", "tiny") == before
    assert {verdict["look"]["number"] for verdict in report(capsys, *where).values()} <= {1, 2, 3}


@pytest.mark.slow
def test_an_interval_that_excludes_zero_at_its_plain_level_only_stays_undecided_in_every_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Peeking would have stopped at three seeds; the report with and without seeds of the user's own does not."""
    falls = {0: 0.3, 1: 0.22, 2: 0.38}

    def saved(seed: int) -> float:
        return falls.get(seed, 0.3 * (-1) ** seed)

    assert effect_of(falls).low > 0
    where = made(tmp_path, saved, most=5)
    ran(capsys, "run", *where, "--until", "decided")
    for overrides in ((), ("seed=[0,1,2]",), ("seed=[0,1,2,3]",)):
        found = report(capsys, where[0], *overrides, *where[1:])["1b"]
        assert (found["outcome"], found["look"]["of"]) == ("undecided", 2)
        assert "95% interval" not in found["sentence"]


def test_the_numbers_of_the_first_call_hold_and_other_ones_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = made(tmp_path, hidden, most=5)
    until = ("run", *where, "--until", "decided")
    for other in (("--most", "20"), ("--most", "5", "--block", "1")):
        refused = ran(capsys, *until, *other, code=2)
        assert "its looks were fixed before training" in refused
        assert "--most 5 --block 2" in refused
    changed = ran(capsys, "run", where[0], "posttrain.lr=2e-3", *where[1:], "--until", "decided", code=2)
    assert "the study was changed since its looks were fixed" in changed
    assert "another name" in changed
    assert len(json.loads(ran(capsys, *until, "--json"))["looks"]["made"]) == 2
    # What cannot change the weights may change.
    ran(capsys, "run", where[0], "execution.parallel=1", *where[1:], "--until", "decided")


def test_seeds_whose_results_may_have_been_seen_are_refused_with_fresh_ones_as_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, store = tiny_study(tmp_path, grid=THREE), tmp_path / "runs"
    prepare_study(str(study), (), store)
    finish_seeds(study, store, [0, 1], clear)
    refused = ran(capsys, "run", str(study), "--store", str(store), "--until", "decided", "--most", "6", code=2)
    assert "trained already (seeds 0, 1)" in refused
    assert "seed=[6]" in refused
    assert looks_of(store, "tiny") is None


def test_results_of_a_block_that_is_not_complete_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = made(tmp_path, clear)
    before = report(capsys, *where)
    assert {verdict["outcome"] for verdict in before.values()} == {"undecided"}
    assert all(verdict["look"] is None for verdict in before.values())
    assert "no value yet" in before["1b"]["sentence"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--most", "5"), "--most 5 applies to --until decided only"),
        (("plan", "--block", "5"), "--block 5 applies to --until decided only"),
        (("run", "--until", "decided"), "add --most 20"),
        (("run", "--until", "decided", "--most", "1"), "a verdict needs 2 seeds"),
        (("run", "--until", "decided", "--most", "5", "--block", "0"), "at least one seed"),
        (("run", "--until", "decided", "--most", "2"), "the study has 3 seeds"),
        (("run", "--until", "decided", "--most", "5", "pretrain.seed=[0,1]"), "use the axis seed"),
        (("run", "--until", "decided", "--most", "5", "pretrain.exposure=[1]"), "tests no claim of the paper"),
        (("submit", "--until", "decided", "--most", "5"), "a submitted job cannot add seeds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_refused_in_a_sentence_before_anything_is_written(
    arguments: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, store = tiny_study(tmp_path, grid=THREE), tmp_path / "runs"
    verb, *options = arguments
    refused = ran(capsys, verb, str(study), *options, "--store", str(store), code=2)
    assert words in refused
    assert refused.count("\n") == 1
    assert not store.exists()


def test_a_linear_study_has_nothing_to_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = linear_study(tmp_path)
    refused = ran(capsys, "run", str(study), "--until", "decided", "--most", "4", "--store", f"{tmp_path}/s", code=2)
    assert "tests no claim of the paper" in refused


def test_a_chain_without_the_papers_stages_has_nothing_to_decide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study(tmp_path, grid={"seed": [0, 1, 2]}, stages=["pretrain", "finetune"])
    fields = yaml.safe_load(study.read_text(encoding="utf-8"))
    del fields["posttrain"]
    study.write_text(yaml.safe_dump(fields), encoding="utf-8")
    refused = ran(capsys, "run", str(study), "--until", "decided", "--most", "4", "--store", f"{tmp_path}/s", code=2)
    assert "tests no claim of the paper" in refused


def test_plan_shows_the_looks_and_the_price_of_the_most_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(tiny_study(tmp_path, grid=THREE))
    where = (study, "--store", str(tmp_path / "runs"))
    planned = json.loads(ran(capsys, "plan", *where, "--until", "decided", "--most", "8", "--json"))
    fixed = json.loads(ran(capsys, "plan", study, "seed=[0,1,2,3,4,5,6,7]", *where[1:], "--json"))
    assert planned["totals"] == fixed["totals"]
    assert (planned["studies"][0]["looks"], fixed["studies"][0]["looks"]) == ([3, 5, 7, 8], [])
    assert "looks at 3, 5, 7, 8 seeds" in ran(capsys, "plan", *where, "--until", "decided", "--most", "8")


def test_studies_with_different_looks_are_not_judged_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = made(tmp_path, clear)
    other = tiny_study(tmp_path, study="other", grid={**THREE, "finetune.lr": [1e-3]})
    refused = ran(capsys, "report", where[0], str(other), *where[1:], code=2)
    assert "report them one by one" in refused


@given(
    own=st.lists(st.integers(0, 99), min_size=1, max_size=6, unique=True),
    most=st.integers(2, 30),
    block=st.integers(1, 5),
)
def test_the_first_look_has_the_studys_own_seeds_and_each_other_one_a_block_more(
    own: list[int], most: int, block: int
) -> None:
    file = check_study(tiny_fields(grid={**GRID, "seed": own}), Path("tiny.yaml"))
    if len(own) > most:
        return
    planned = schedule(file, most, block)
    assert planned.seeds[: len(own)] == planned.own == own
    assert len(set(planned.seeds)) == len(planned.seeds) == planned.counts[-1] == most
    assert planned.counts[0] >= max(2, len(own))
    steps = [after - before for before, after in zip(planned.counts, planned.counts[1:], strict=False)]
    assert all(step == block for step in steps[:-1])
    assert all(1 <= step <= block for step in steps)
    added = planned.seeds[len(own) :]
    assert added == list(range(max(own) + 1, max(own) + 1 + len(added)))


@pytest.mark.slow
def test_an_interrupted_run_continues_at_the_same_look_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Real training in processes of its own, interrupted in the second block."""
    study = tiny_study(tmp_path, grid=GRID)
    where = (study, "--store", tmp_path / "runs")
    process = start("run", *where, "--until", "decided", "--most", "4")
    place = tmp_path / "runs" / "studies" / "tiny" / LOOKS
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and not (place.exists() and json.loads(place.read_text())["made"]):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "--until decided --most 4 resumes" in errors
    first = json.loads(place.read_text())
    assert [look["seeds"] for look in first["made"]] == [2]
    found = retain_json("run", *where, "--until", "decided", "--most", "4")
    assert found["looks"]["made"][0] == first["made"][0]
    assert [look["seeds"] for look in found["looks"]["made"]] == [2, 4]
    assert {row["axes"]["seed"] for row in found["trials"]} == {0, 1, 2, 3}
    assert all(row["retained_posttraining_loss"] is not None for row in found["trials"])
    assert len({name.split()[0] for name in weights(tmp_path / "runs")}) == 24
