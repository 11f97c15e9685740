"""Several studies reported together: trials of both on one page, judged as if one study held them, or a refusal."""

import json
from pathlib import Path
from random import Random

import pytest

from retain.launchers.cli.app import main
from retain.launchers.planning.opened_study import open_study
from retain.launchers.planning.register import register
from retain.results.claims.verdicts import verdicts
from retain.results.report.together import pooled_rows
from retain.results.store.loss_table import trial_rows
from retain.sweeps.schema.read import STUDIES, read_study
from retain.sweeps.schema.section import LOSSES
from tests.results.runs import finish

SMALL = ("posttrain.lr=1e-3", "seed=[0,1]", "finetune.lr=[5e-5, 2e-4]")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages of the laptop studies of Figures 4 and 6, cut to two rates and two seeds, finished by hand."""
    root = tmp_path_factory.mktemp("together") / "runs"
    root.mkdir()
    for name in ("laptop-figure4", "laptop-figure6"):
        opened = open_study(name, SMALL, root)
        register(opened.tree, opened.file, opened.facts, opened.store)
        for stage in opened.tree.stages.values():
            run = opened.store.run(stage.key)
            if not run.is_done():
                finish(run, 3.0 + Random(f"{stage.stage} {stage.axes}").gauss(0, 0.02))
    return root


def claims(store: Path, *studies: str) -> tuple[int, set[str]]:
    """The number of pooled trials, and the claims that they test on dropout, as `4e dropout`, and on others, as `3`."""
    opened = [open_study(name, SMALL, store) for name in studies]
    rows = pooled_rows([one.file for one in opened], [trial_rows(one.tree, one.store) for one in opened])
    found = {f"{one.claim}{' dropout' if 'dropout' in one.words else ''}" for one in verdicts(rows)}
    return len(rows), found


def test_two_studies_together_test_claims_that_neither_can_test(store: Path) -> None:
    (few, fourth), (_, sixth) = claims(store, "laptop-figure4"), claims(store, "laptop-figure6")
    many, both = claims(store, "laptop-figure4", "laptop-figure6")
    assert (few, many) == (32, 48)
    assert {"4a dropout", "4c dropout", "4d dropout", "4e dropout"} <= both
    assert not {"4d dropout", "4e dropout"} & (fourth | sixth)
    assert fourth | sixth <= both


def test_their_page_has_the_verdicts_and_both_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("laptop-figure4", "laptop-figure6", *SMALL, "--store", str(tmp_path))
    assert main(["report", *arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["study"], document["trials"]) == ("laptop-figure4+laptop-figure6", 48)
    page = Path(document["report"]).read_text(encoding="utf-8")
    for name in ("laptop-figure4", "laptop-figure6"):
        assert f"<h3>{name}</h3>" in page
        assert f"<summary>{name}.yaml" in page
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    assert "retain report laptop-figure4 laptop-figure6" in page
    assert "ours: the paper does not claim it" in page
    assert f"adjusted for {len(document['verdicts'])} verdicts" in page


def changed(folder: Path, old: str, new: str) -> str:
    """A copy of the study of Figure 6 with another text in it."""
    text = (STUDIES / "laptop-figure6.yaml").read_text(encoding="utf-8")
    assert old in text
    path = folder / "changed.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return str(path)


def test_an_axis_of_one_study_and_a_fixed_field_of_another_are_the_same_axis(store: Path, tmp_path: Path) -> None:
    varied = changed(tmp_path, "grid:\n", "grid:\n  posttrain.lr: [3e-4, 1e-3]\n")
    files = [read_study(varied, SMALL[1:]), read_study("laptop-figure4", SMALL[1:])]
    row = {"keys": {}, **dict.fromkeys(LOSSES, 1.0), "tokens": 1}
    axes = {"pipeline": "music-chemistry", "method": "unmixed", "seed": 0, "finetune.lr": 5e-5}
    rows = pooled_rows(files, [[row | {"axes": axes | {"posttrain.lr": 1e-3}}], [row | {"axes": axes}]])
    assert [one["axes"] for one in rows] == [axes | {"posttrain.lr": 1e-3}]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("laptop-figure3a", "have different axes of cases"),
        ("theory", "a linear study cannot be reported with others"),
        (("tokens: 40k", "tokens: 60k"), "differ in finetune.tokens (40k and 60k)"),
        (("model: laptop ", "model: {preset: laptop, layers: 3} "), "differ in model"),
        (
            ("mixed:           {pretrain.exposure: 1}", "mixed:           {pretrain.exposure: 0.5}"),
            "the case method mixed",
        ),
        (("heldout: 0.012}        # ABC", "heldout: 0.1}        # ABC"), "differ in corpora.music.heldout"),
    ],
)
def test_studies_that_cannot_be_compared_are_refused(
    store: Path, tmp_path: Path, other: str | tuple[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = other if isinstance(other, str) else changed(tmp_path, *other)
    assert main(["report", "laptop-figure4", name, "--store", str(store)]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "one by one" in message or "by itself" in message
