"""What a plan says, against what the launchers would do."""

from pathlib import Path
from typing import Any

import pytest

import retain
from retain.launchers.jobs.resources import as_executions, slurm_resources
from retain.launchers.jobs.sbatch import planned_families
from retain.launchers.planning.opened_study import open_study
from tests.studies import tiny_study

EWC = {"finetune.anchor": {"ewc": 1, "sequences": 4}, "grid": {"finetune.anchor.sequences": [4, 8, 16]}}


@pytest.mark.parametrize(
    "fields",
    [{}, {"execution.pack": 2}, {**EWC, "execution.pack": 2}, {**EWC, "execution.stages": {"finetune": {"pack": 2}}}],
    ids=lambda fields: str(fields),
)
def test_a_plan_counts_the_jobs_that_submit_makes(fields: dict[str, Any], tmp_path: Path) -> None:
    study, store = str(tiny_study(tmp_path, **fields)), tmp_path / "runs"
    opened = open_study(study, [], store)
    executions = as_executions(slurm_resources(opened.tree, opened.file, opened.store, None, []))
    families = planned_families(opened.tree, opened.tree.stages, executions)
    assert retain.plan(study, store=store).totals.jobs == sum(-(-len(one.keys) // one.pack) for one in families)


def test_a_plan_says_which_unprepared_corpus_is_too_small_for_a_stage(tmp_path: Path) -> None:
    study = str(tiny_study(tmp_path, **{"corpora.music.tokens": 1280}))
    limited = f"{study}: corpora.music.tokens: reading stops at 1,280 training tokens, and posttrain takes 2,560; "
    assert retain.plan(study, store=tmp_path / "runs").notes == [f"{limited}raise the limit, or lower posttrain.tokens"]
    (small,) = retain.plan(study, ["corpora.music.tokens=null", "pretrain.tokens=1M"], store=tmp_path / "runs").notes
    assert small.startswith(f"{study}: corpora.general: its source has ")
    assert small.endswith(
        " and pretrain takes 1,000,000 tokens, more than one of each byte; enlarge the corpus, or lower pretrain.tokens"
    )


def test_a_plan_says_that_the_tokens_of_a_reference_are_unknown_until_its_pairs_are_prepared(tmp_path: Path) -> None:
    pairs = {"files": "pairs.jsonl", "prompt": "Q: {question}", "chosen": " {good}", "rejected": " {bad}"}
    learned = {"corpora.pairs": pairs, "finetune.corpus": "pairs", "finetune.objective": {"dpo": 0.1}}
    study = str(tiny_study(tmp_path, **learned, **{"pretrain.mix.chemistry.tokens": 320}))
    (tmp_path / "pairs.jsonl").write_text('{"question": "a", "good": "b", "bad": "c"}\n' * 1000)
    assert retain.plan(study, store=tmp_path / "runs").notes == [
        f"{study}: corpora.pairs is not prepared, so the tokens of reference, which reads all its pairs, count as 0"
    ]
