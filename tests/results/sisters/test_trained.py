"""Studies with the designs of other papers, trained on tiny models, have figures, verdicts and a page from `retain report`."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import retain
from retain.launchers.cli.app import main
from tests.studies import tiny_study

TRUNK = {"corpus": "general", "tokens": 1920, "lr": 3e-3, "schedule": "constant", "batch": 8}
DECAY = {**TRUNK, "skip": 1920, "schedule": "linear", "start": {"optimizer": "carry"}}
TUNED = {"corpus": "target", "tokens": 640, "lr": 1e-3, "batch": 8}
TARGET = {
    "general": {"files": "general.txt", "separator": "\n\n", "heldout": 0.1},
    "target": {"files": "chemistry.jsonl", "heldout": 0.1},
}
TWO_BUDGETS: dict[str, Any] = {
    "1920": {"trunk2.tokens": 0, "decay.tokens": 320, "decay.skip": 1920},
    "3840": {"trunk2.tokens": 1920, "decay.tokens": 640, "decay.skip": 3840},
}

DESIGNS: dict[str, tuple[dict[str, Any], dict[str, int], set[str]]] = {
    "forgetting-law": (
        {
            "stages": ["pretrain", "finetune"],
            "cases": {"size": {"small": {"model.hidden": 16}, "large": {"model.hidden": 32}}},
            "finetune": {
                "corpus": "chemistry",
                "tokens": 640,
                "lr": 3e-3,
                "batch": 8,
                "mix": {"general": {"share": 0}},
            },
            "grid": {
                "seed": [0, 1],
                "finetune.tokens": [1600, 3200, 4800],
                "finetune.mix.general.share": [0, 0.01, 0.2],
            },
        },
        {"pretrain": 4, "finetune": 36},
        {"7a", "7b"},
    ),
    "replay-schedules": (
        {
            "stages": ["pretrain", "phase2"],
            "corpora": TARGET,
            "pretrain": {**TRUNK, "tokens": 4096, "schedule": "cosine"},
            "phase2": {**TUNED, "tokens": 0},
            "cases": {
                "phases": {
                    "continued a=1 r=0": {
                        "pretrain.mix.target": {"passes": 1, "of": 512, "window": [0.875, 1], "replaces": True}
                    },
                    "continued a=1 r=0 rare=2": {
                        "pretrain.mix.target": {"passes": 1, "of": 1024, "window": [0.75, 1], "replaces": True}
                    },
                    "continued a=1 r=0.5": {
                        "pretrain.mix.target": {"passes": 1, "of": 512, "window": [0.75, 1], "replaces": True}
                    },
                    "restarted a=1 r=0": {"pretrain.tokens": 3584, "phase2.tokens": 512},
                    "restarted a=1 r=0.5": {
                        "pretrain.tokens": 3072,
                        "phase2.tokens": 512,
                        "phase2.mix.general": {"share": 0.5, "skip": 3072},
                    },
                }
            },
            "grid": {"seed": [0, 1]},
        },
        {"pretrain": 10, "phase2": 4},
        {"8a", "8c"},
    ),
    "overtrained": (
        {
            "stages": ["pretrain", "trunk2", "decay", "finetune"],
            "corpora": TARGET,
            "pretrain": TRUNK,
            "trunk2": {**TRUNK, "tokens": 0, "skip": 1920, "start": {"optimizer": "carry"}},
            "decay": DECAY,
            "finetune": TUNED,
            "cases": {"budget": TWO_BUDGETS},
            "grid": {"seed": [0, 1], "finetune.lr": [1e-4, 1e-2]},
        },
        {"pretrain": 2, "trunk2": 2, "decay": 4, "finetune": 8},
        {"9a", "9b"},
    ),
    "specialised": (
        {
            "stages": ["pretrain", "decay", "adapt"],
            "corpora": TARGET,
            "pretrain": {**TRUNK, "mix": {"target": {"share": 0, "of": 640, "replaces": True}}},
            "decay": {**DECAY, "tokens": 320},
            "adapt": {**TUNED, "max_tokens": 1280, "early_stopping": {"every": 2, "patience": 2, "split": "tune"}},
            "cases": {
                "pretraining": {
                    "general 1920": {"pretrain.mix.target.share": 0},
                    "specialised 1920": {"pretrain.mix.target.share": 0.2},
                }
            },
            "grid": {"seed": [0, 1]},
        },
        {"pretrain": 4, "decay": 4, "adapt": 4},
        {"10a", "10b"},
    ),
}
"""The fields of a tiny study of each design, its number of stages by name, and the claims that it tests."""
UNUSED = {"posttrain", "finetune"}
"""The stages of the tiny study that a design may lack."""


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_a_tiny_study_is_trained_and_reported(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields, counts, claims = DESIGNS[name]
    study = tiny_study(tmp_path, study=name, **fields)
    whole = yaml.safe_load(study.read_text())
    study.write_text(
        yaml.safe_dump({name: part for name, part in whole.items() if name not in UNUSED - set(fields["stages"])})
    )
    store = tmp_path / "runs"
    plan = retain.plan(str(study), store=store)
    assert {stage: sum(one.stage == stage for one in plan.stages) for stage in counts} == counts
    results = retain.run(str(study), store=store)
    assert not results.failures
    capsys.readouterr()
    assert main(["report", str(study), "--store", str(store), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (figure,) = (one for one in report["figures"] if one["name"] == name)
    assert figure["missing"] == 0
    assert Path(figure["png"]).stat().st_size > 10_000
    assert {one["claim"] for one in report["verdicts"]} == claims
    assert all("at 2 seeds" in one["sentence"] for one in report["verdicts"])
    page = Path(report["report"]).read_text(encoding="utf-8")
    assert figure["title"] in page
    assert "arXiv 2" in page
