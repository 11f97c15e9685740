"""Tasks of the lm-evaluation-harness: their numbers are those of the model's log-probabilities, and they train nothing."""

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import retain
from retain.datamodules.corpora.prepared import stored_tokenizer
from retain.datamodules.corpora.tasks.prepare import task_facts
from retain.launchers.cli.app import main
from retain.launchers.planning.evaluations import with_evaluations
from retain.launchers.planning.opened_study import open_study
from retain.launchers.search.console import searching as following
from retain.launchers.search.summary import summary_document
from retain.launchers.stage.attempt import make_attempt
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import AttemptStopped, StopRequest
from retain.launchers.stage.training.choose_numerics import machine_of
from retain.lightning_modules.models import load_model
from retain.lightning_modules.objective import next_token_losses
from retain.results.analysis.search_summary import violations
from retain.results.report.search import describe_search
from retain.results.store.loss_table import loss_at
from retain.results.store.measured.tasks import measures_of
from retain.results.store.runs import Run, Store
from retain.sweeps.base.errors import MissingResourceError, RetainError, StudyError
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.keys import canonical
from tests.launchers.search.searches import block, finish, searching
from tests.launchers.stage.tasks.local_tasks import QUESTIONS, TEXTS, write_tasks
from tests.results.runs import put_state
from tests.studies import leave_out, tiny_study

TASKS = {
    "rivers": {"path": "tasks/", "shots": 1},
    "banks": {"path": "tasks/", "shots": 1},
    "rain": {"path": "tasks/rain.yaml", "limit": 2},
}
CONTEXT = 64
"""The context of the model. The harness cuts longer prompts at their beginning."""
AT = ["posttrain", "finetune"]


def study(folder: Path, tasks: dict[str, Any], **more: Any) -> str:
    write_tasks(folder)
    fields = {"grid": {}, "execution": {"accelerator": "cpu"}, **more}
    return str(tiny_study(folder, **fields, evaluate={"tasks": tasks, "at": AT}))


class Measured:
    """A finished study, to which tasks were added."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder / "runs")
        write_tasks(folder)
        plain = str(tiny_study(folder, grid={"finetune.average": [0.5, 1]}, execution={"accelerator": "cpu"}))
        retain.run(plain, (), self.store.root)
        attempts = self.attempts()
        self.name = study(folder, TASKS, grid={"finetune.average": [0.5, 1]})
        found = retain.evaluate(self.name, (), self.store.root)
        assert not found.failures
        self.rows = found.trials
        planned = retain.plan(self.name, store=self.store.root)
        # 2 stages and an average by 3 tasks, and the average on 3 corpora.
        assert (planned.evaluations.runs, planned.evaluations.to_measure, planned.totals.to_train) == (12, 0, 0)
        assert {key: count for key, count in self.attempts().items() if key in attempts} == attempts

    def attempts(self) -> dict[str, int]:
        return {run.key: len(run.state().attempts) for run in self.store.runs()}

    def evaluation(self, task: str, stage: str = "finetune") -> Run:
        asked = with_evaluations(open_study(self.name, (), self.store.root)).stages.values()
        keys = [one.key for one in asked if one.axes.get("evaluate.tasks") == task and one.axes["evaluate.at"] == stage]
        return self.store.run(keys[-1])

    def log_probabilities(self, stage: str, context: str, text: str) -> tuple[float, int]:
        """The sum of the log-probabilities of a text after a context, by hand, and the number of its tokens."""
        spec = self.store.run(self.rows[1]["keys"][stage]).spec()
        tokenizer = stored_tokenizer(self.store.root, spec["tokenizer"])
        before, whole = tokenizer.encode([context])[0], tokenizer.encode([context + text])[0]
        predicted = len(whole) - len(before)
        ids = (whole if before else [tokenizer.end_id, *whole])[-CONTEXT - 1 :]
        model = load_model(self.store.run(self.rows[1]["keys"][stage]).model).eval()
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids[:-1]])).logits[0].log_softmax(dim=-1)
        own = [scores[place - 1, ids[place]].item() for place in range(len(ids) - predicted, len(ids))]
        return sum(own), len(own)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return Measured(tmp_path_factory.mktemp("tasks"))


def test_a_task_added_to_a_finished_study_gives_the_numbers_of_the_models_own_log_probabilities(
    measured: Measured,
) -> None:
    for stage in AT:
        right, normed, answers = 0, 0, list[float]()
        for number, one in enumerate(QUESTIONS):
            other = _example_of(measured, number)
            context = f"{other}the {one['question']}"
            scores = [measured.log_probabilities(stage, context, f" {choice}")[0] for choice in one["choices"]]
            shares = [score / len(choice) for score, choice in zip(scores, one["choices"], strict=True)]
            answers.append(scores[one["answer"]])
            right += scores.index(max(scores)) == one["answer"]
            normed += shares.index(max(shares)) == one["answer"]
        found = measured.rows[1]["measures"][stage]
        assert (found["rivers/acc"], found["rivers/acc_norm"]) == (right / len(QUESTIONS), normed / len(QUESTIONS))
        assert found["banks/perplexity"] == pytest.approx(math.exp(-sum(answers) / len(answers)), rel=1e-4)


def _example_of(measured: Measured, number: int) -> str:
    """The solved example that the harness puts before a question: one that its seeded sampler draws, not the question."""
    draw = random.Random(1234)
    for place in range(number + 1):
        chosen = draw.sample(QUESTIONS, 2)
        kept = next(one for one in chosen if one is not QUESTIONS[place])
    return f"the {kept['question']} {kept['choices'][kept['answer']]}\n\n"


def test_a_text_gives_the_perplexity_of_the_models_own_log_probabilities(measured: Measured) -> None:
    """The first token is predicted from the end of text that separates documents in training; the limit takes two texts."""
    for stage in AT:
        total = sum(measured.log_probabilities(stage, "", text)[0] for text in TEXTS[:2])
        size = sum(len(text.encode()) for text in TEXTS[:2])
        found = measured.rows[1]["measures"][stage]
        assert found["rain/byte_perplexity"] == pytest.approx(math.exp(-total / size), rel=1e-5)
        assert found["rain/bits_per_byte"] == pytest.approx(-total / size / math.log(2), rel=1e-5)
    assert measures_of(measured.evaluation("rain"))["documents"] == 2


def test_a_text_is_measured_in_bf16_as_held_out_losses_are(tmp_path: Path) -> None:
    """Logits are in bf16, and losses in fp32: in bf16, the log-probability of a text would have three digits."""
    execution = {"accelerator": "cpu", "precision": "bf16"}
    fields = {"stages": ["pretrain"], "grid": {}, "execution": execution}
    path = tiny_study(tmp_path, **fields, evaluate={"tasks": {"rain": {"path": "tasks/"}}})
    write_tasks(tmp_path)
    (trial,) = retain.run(str(leave_out(path, "posttrain", "finetune")), (), tmp_path / "runs").trials
    run = Store(tmp_path / "runs").run(trial["keys"]["pretrain"])
    tokenizer = stored_tokenizer(tmp_path / "runs", run.spec()["tokenizer"])
    model, total = machine_of(run.execution()).receive(load_model(run.model)).eval(), 0.0
    for text in TEXTS:
        sequence = torch.tensor([[tokenizer.end_id, *tokenizer.encode([text])[0]]])
        with torch.autocast("cpu", torch.bfloat16):
            total += next_token_losses(model, sequence).item()
    exact = math.exp(total / sum(len(text.encode()) for text in TEXTS))
    assert trial["measures"]["pretrain"]["rain/byte_perplexity"] == pytest.approx(exact, rel=2e-4)


def test_metrics_are_columns_of_results_frame_csv_and_report(
    measured: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    average, end = measured.rows
    assert average["measures"]["posttrain"] == end["measures"]["posttrain"]
    assert (
        average["measures"]["finetune"]["rain/byte_perplexity"] != end["measures"]["finetune"]["rain/byte_perplexity"]
    )
    frame = retain.load(measured.name, measured.store.root)
    column = "finetune/rain/byte_perplexity"
    assert list(frame[column]) == [loss_at(row, column) for row in measured.rows]
    where = [measured.name, "--store", str(measured.store.root)]
    assert main(["results", *where, "--losses", "finetune/rivers/acc", "--csv", str(measured.folder / "all.csv")]) == 0
    assert "finetune/rivers/acc" in capsys.readouterr().out
    assert column in (measured.folder / "all.csv").read_text().splitlines()[0]
    assert main(["results", *where, "--losses", "finetune/rivers/f1"]) == StudyError.exit_code
    assert "did you mean finetune/rivers/acc?" in capsys.readouterr().err
    assert main(["report", *where, "--plane", "finetune/rivers/acc,L_ft"]) == 0
    page = (measured.store.root / "studies" / "tiny" / "report.html").read_text()
    assert "finetune/rivers/acc \N{UPWARDS ARROW}<" in page
    assert "What does each method trade between finetune/rivers/acc and L_ft?" in page
    assert f"{column}<" in page
    assert f"{end['measures']['finetune']['rain/byte_perplexity']:.4f}" in page


def test_a_changed_file_of_a_task_is_another_measure_and_a_moved_one_the_same(
    measured: Measured, tmp_path: Path
) -> None:
    def recipes(folder: Path) -> dict[str, str]:
        name = str(folder / "tiny.yaml")
        facts = task_facts(read_study(name), measured.store.root)
        return {name: canonical(one.recipe) for name, one in facts.items()}

    before = recipes(measured.folder)
    assert measured.evaluation("rain").spec()["recipe"].items() >= json.loads(before["rain"]).items()
    study(tmp_path / "moved", TASKS)
    assert recipes(tmp_path / "moved") == before
    data = tmp_path / "moved" / "tasks" / "rain.jsonl"
    data.write_text(data.read_text().replace("river", "rivers"))
    after = recipes(tmp_path / "moved")
    assert (after["rivers"], after["rain"] != before["rain"]) == (before["rivers"], True)


def test_a_repeated_evaluation_gives_the_same_bits_and_a_damaged_one_is_found(
    measured: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured.evaluation("rain")
    before = (run.folder / "measures.json").read_bytes()
    (run.folder / "measures.json").write_text("{")
    where = [measured.name, "--store", str(measured.store.root)]
    assert main(["verify", *where]) == 1
    assert "measures.json is damaged" in capsys.readouterr().out
    shutil.rmtree(run.folder)
    assert not retain.evaluate(measured.name, (), measured.store.root).failures
    assert (run.folder / "measures.json").read_bytes() == before
    assert main(["verify", *where]) == 0


def test_an_evaluation_that_is_asked_to_stop_is_left_planned_and_measured_later(measured: Measured) -> None:
    run = measured.evaluation("rain")
    before, stop = (run.folder / "measures.json").read_bytes(), StopRequest()
    put_state(run, replace(run.state(), state="planned", checksums={}))
    stop.signal = "SIGUSR2"
    with pytest.raises(AttemptStopped):
        make_attempt(measured.store, run.key, Ranks(), stop)
    assert (run.state().state, run.state().attempts[-1].cause) == ("planned", "SIGUSR2")
    make_attempt(measured.store, run.key, Ranks(), StopRequest())
    assert run.is_done()
    assert (run.folder / "measures.json").read_bytes() == before


def test_readers_need_no_harness(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retain.sweeps.base.extras.is_installed", lambda package: package != "lm_eval")
    other = study(measured.folder / "unprepared", TASKS, study="unprepared")
    assert retain.status(other, (), measured.store.root).provisional
    assert list(retain.load(measured.name, measured.store.root)["finetune/rain/byte_perplexity"].notna()) == [
        True,
        True,
    ]
    with pytest.raises(MissingResourceError) as error:
        retain.plan(measured.name, store=measured.store.root)
    assert str(error.value) == (
        "tiny.yaml: evaluate.tasks.rivers: the lm-evaluation-harness: lm_eval is not installed; run pip install "
        "'retain-lm[tasks]', or remove the task"
    )


@pytest.mark.parametrize(
    ("tasks", "kind", "problem"),
    [
        (
            {"arc_esay": {}},
            StudyError,
            "evaluate.tasks.arc_esay: the harness has no task of this name (did you mean arc_easy?)",
        ),
        ({"mmlu": {}}, StudyError, "evaluate.tasks.mmlu: mmlu is a group of several tasks; name single tasks"),
        ({"river": {"path": "tasks/"}}, StudyError, "evaluate.tasks.river.path: no YAML file in "),
        ({"a": {"path": "nowhere.yaml"}}, MissingResourceError, "evaluate.tasks.a: "),
        ({"rivers": {"path": "tasks/", "shots": -1}}, StudyError, "evaluate.tasks.rivers.shots: "),
        ({"rivers": {"path": "tasks/", "limit": 0}}, StudyError, "evaluate.tasks.rivers.limit: "),
        ({"a b": {}}, StudyError, "evaluate.tasks: 'a b' is not the name of a task"),
        ({}, StudyError, "evaluate: nothing is measured; name corpora, tasks or both"),
    ],
)
def test_a_wrong_task_is_one_sentence_at_plan_time(
    tmp_path: Path, tasks: dict[str, Any], kind: type[RetainError], problem: str
) -> None:
    with pytest.raises(kind) as error:
        retain.plan(study(tmp_path, tasks), store=tmp_path / "runs")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_data_set_that_is_not_here_is_named_with_the_places_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    name = study(tmp_path, {"arc_easy": {"limit": 500}})
    (note,) = [note for note in retain.plan(name, store=tmp_path / "runs").notes if "arc_easy" in note]
    assert f"data set allenai/ai2_arc is not on this machine, neither as {tmp_path}/cache/allenai___ai2_arc nor" in note
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingResourceError, match="and HF_HUB_OFFLINE is set; copy it there"):
        retain.plan(name, store=tmp_path / "runs")
    write_tasks(tmp_path)
    (tmp_path / "tasks" / "rain.jsonl").unlink()
    with pytest.raises(
        MissingResourceError, match=r"evaluate.tasks.rain: dataset_kwargs.data_files: no file matches rain"
    ):
        retain.plan(study_without_data(tmp_path), store=tmp_path / "runs")


def study_without_data(folder: Path) -> str:
    path = folder / "tiny.yaml"
    fields = yaml.safe_load(path.read_text())
    fields["evaluate"]["tasks"] = {"rain": {"path": "tasks/rain.yaml"}}
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    return str(path)


def test_functions_and_included_files_of_a_task_are_part_of_it(tmp_path: Path) -> None:
    """Their modules are copied into the store: a queued job measures what there was at its submission."""
    place = write_tasks(tmp_path)
    (place / "helper.py").write_text("def text(doc):\n    return 'the ' + doc['question']\n")
    base = yaml.safe_load((place / "rivers.yaml").read_text())
    del base["doc_to_text"], base["task"]
    (place / "base.yml").write_text(yaml.safe_dump(base))
    (place / "rivers.yaml").write_text("include: base.yml\ntask: rivers\ndoc_to_text: !function helper.text\n")
    path = tiny_study(
        tmp_path,
        grid={},
        stages=["pretrain"],
        execution={"accelerator": "cpu"},
        evaluate={"tasks": {"rivers": {"path": "tasks"}, "words": {"path": "tasks/"}}},
    )
    name = str(leave_out(path, "posttrain", "finetune"))
    opened = open_study(name, (), tmp_path / "runs", remember=False)
    found = retain.run(name, (), tmp_path / "runs").trials[0]
    assert 0 <= found["measures"]["pretrain"]["rivers/acc"] <= 1
    assert found["measures"]["pretrain"]["words/exact_match@low"] == 0
    assert opened.facts.tasks["words"].metrics == {"exact_match@first": True, "exact_match@low": True}
    (copy,) = (tmp_path / "runs" / "tasks").glob("*/code*/helper.py")
    assert (
        json.loads((copy.parents[1] / "task.json").read_text())["config"]["doc_to_text"]["!function"] == "helper.text"
    )
    (place / "helper.py").write_text("def text(doc):\n    return doc['question']\n")
    assert opened.facts.tasks != open_study(name, (), tmp_path / "runs", remember=False).facts.tasks


def test_a_search_measures_the_metrics_that_it_is_for_and_knows_which_of_them_are_better_higher(
    measured: Measured,
) -> None:
    wanted = block(
        axes={"finetune.lr": [1e-3, 5e-3]},
        searcher="grid",
        objective={"hypervolume": ["finetune/rain/bits_per_byte", "finetune/rivers/acc"]},
        constraints={"posttrain/rivers/acc": {"at_least": 1e-9}, "finetune/rain/bits_per_byte": {"within": 10}},
    )
    search = searching(measured.name, measured.store.root, wanted)
    finish(search)
    one, other = search.results()
    kept = [stage.axes["evaluate.tasks"] for stage in search.candidates[0].evaluations.values()]
    assert sorted(kept) == ["rain", "rivers", "rivers"]  # not at every stage, and not banks
    assert one.means["finetune/rain/bits_per_byte"] == measured.rows[1]["measures"]["finetune"]["rain/bits_per_byte"]
    assert one.scores == (one.means["finetune/rain/bits_per_byte"], -one.means["finetune/rivers/acc"])
    accuracy = one.means["posttrain/rivers/acc"]
    assert violations(search.space, [one, other])[0][0] == 1e-9 - accuracy
    assert (
        describe_search(summary_document(search))
        .sentences[0]
        .startswith(
            "Minimised: the frontier of finetune/rain/bits_per_byte and finetune/rivers/acc (finetune/rivers/acc maximised)."
        )
    )
    with pytest.raises(StudyError, match=r"search.objective: unknown loss 'finetune/rain/acc'"):
        searching(
            measured.name, measured.store.root, block(axes={"finetune.lr": [1e-3]}, objective="finetune/rain/acc")
        )


def test_a_search_for_a_metric_of_which_higher_is_better_says_that_it_is_maximised(
    measured: Measured, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = block(axes={"finetune.lr": [2e-3]}, searcher="grid", objective="finetune/rivers/acc")
    search = searching(measured.name, measured.store.root, wanted)
    with following(search):
        finish(search)
    result = next(one for one in search.results() if one.values == {"finetune.lr": 2e-3})
    assert f" {result.means['finetune/rivers/acc']:.4f}\n" in capfd.readouterr().err
    assert describe_search(summary_document(search)).sentences[0].startswith("Maximised: finetune/rivers/acc. ")


@pytest.mark.slow
def test_a_search_measures_what_is_blank_after_stages_that_another_study_trained(tmp_path: Path) -> None:
    name = str(tiny_study(tmp_path, grid={}, execution={"accelerator": "cpu"}))
    retain.run(name, ["finetune.corpus=general"], tmp_path / "runs")
    wanted = block(axes={"finetune.lr": [1e-3]}, objective="posttrain/chemistry")
    search = searching(name, tmp_path / "runs", wanted)
    finish(search)
    (result,) = search.results()
    assert 0 < result.means["posttrain/chemistry"] < 10
