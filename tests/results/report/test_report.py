"""The report of a study: one complete page that works in a real browser without a network."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from retain.launchers.cli.app import main
from retain.results.analysis.effects import effect_of
from retain.results.analysis.loss_planes import L_IM, L_RET
from retain.results.analysis.methods import PIPELINES
from retain.results.claims.judging import Statement, judge, judged_at
from retain.results.claims.looks import Look
from retain.results.claims.verdicts import verdicts
from retain.results.figures.drawing import page_element
from retain.results.figures.paper import draw_paper_figures
from retain.results.report.deviations import DIFFERS, OPEN, SAME, deviations, summary
from retain.results.report.forest import forest
from retain.results.report.page import write_report
from retain.results.report.provenance import Origin
from retain.results.report.study import budgets
from retain.results.store.loss_table import trial_rows
from retain.results.store.runs import Store
from retain.sweeps.schema.read import check_study, read_study
from retain.sweeps.schema.section import LOSSES
from retain.sweeps.schema.stages import Optimisation
from retain.sweeps.tree.tree import expand
from tests.browser import Page, browser, install
from tests.conftest import Trained
from tests.results.made_rows import method_rows
from tests.results.runs import finish_all, kinds, registered
from tests.studies import made_up_facts, tiny_fields


@pytest.fixture(scope="module")
def reported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the trained tiny study over three rates; two of its six trials are not trained."""
    store = tmp_path_factory.mktemp("reported") / "runs"
    shutil.copytree(trained.store, store)
    assert main(["report", str(trained.study), "finetune.lr=[5e-4, 2e-3, 7e-3]", "--store", str(store)]) == 0
    (page,) = (store / "studies" / "tiny" / "with").glob("finetune.lr*/report.html")
    return page


@pytest.fixture(scope="module")
def page(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The report, opened from its file in a browser."""
    try:
        install()
    except RuntimeError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this test: {error}")
        pytest.skip(str(error))
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        opened.open(reported)
        yield opened


def text_of(html: str) -> str:
    """The text of a page, without figures, scripts and markup."""
    words = re.sub(r"<(svg|script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", words).split())


def made_report(root: Path, **overrides: object) -> str:
    """The page of a registered study with whatever runs its store holds."""
    file = check_study(tiny_fields(**overrides), root / "tiny.yaml")
    file.path.write_text(file.path.read_text() if file.path.exists() else "study: tiny\n")
    facts = made_up_facts(file)
    tree, store = expand(file, facts), Store(root)
    origin = Origin("tiny", {"retain": "0"}, None, "a machine", 1.8e9)
    rows = trial_rows(tree, store)
    return write_report([(file, facts, rows)], tree, store, rows, [], [], origin).read_text()


def test_the_page_answers_a_readers_questions(reported: Path) -> None:
    text = text_of(reported.read_text())
    for expected in (
        "What does a model still know",
        "Partial results: 2 of 6 trials are missing.",
        "6 trials in 10 stages",
        "sharing saves",
        "4 done, 2 planned",
        "2 of 6 trials missing",
        "finetune.lr",
        "0.0005, 0.002, 0.007",
        "retain report",
        "python 3.",
        "first attempt",
        "8 for 8 runs; runs with more than one: 0",
        "device-hours",
        "all attempts, on CPU",
        "has the lowest L_ret",
    ):
        assert expected in text, expected
    assert "undecided" in text
    assert "1 seed" in text


def test_the_page_refers_to_no_network_address_or_other_file(reported: Path) -> None:
    html = reported.read_text()
    assert not re.findall(r"""(?:src|srcset|action|poster|data)=["'](?!data:)""", html)
    assert not re.findall(r"""\bhref=["'](?!#|data:)""", html)
    assert not re.findall(r"url\((?!#)", html)
    assert "@import" not in html
    addresses = set(re.findall(r"https?://[^\"'<\s]+", html))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}


def test_ids_are_unique_across_figures_and_every_reference_resolves(reported: Path) -> None:
    html = reported.read_text()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) <= set(ids)


def test_the_page_opens_offline_without_requests_or_errors(page: Page, reported: Path) -> None:
    assert page.requests == [reported.as_uri()]
    assert page.errors == []
    assert page.value("document.title") == "tiny: report"
    assert page.value("performance.getEntriesByType('resource').length") == 0


PANELS = """[...document.querySelectorAll('.panel')].map(p => {
  const s = p.querySelector('svg'), b = s.getBoundingClientRect(), text = [...s.querySelectorAll('text')];
  return {name: s.getAttribute('aria-label'), left: b.left, right: b.right, high: b.height,
    drawn: s.querySelectorAll('path').length, small: Math.min(...text.map(t => t.getBoundingClientRect().height)),
    caption: p.closest('figure').querySelector('figcaption').textContent} })"""


@pytest.mark.parametrize("width", [390, 820, 1400])
def test_its_figures_are_readable_on_phones_and_desks(page: Page, width: int) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    found = page.value(PANELS)
    assert len(found) > 6
    for panel in found:
        assert 0 <= panel["left"] < panel["right"] <= width
        assert panel["right"] - panel["left"] > 250
        assert panel["high"] > 180
        assert panel["drawn"] > 10
        assert panel["small"] > 8, "text of a figure, in CSS pixels"
        assert panel["name"]
        assert panel["caption"]
    assert page.value("document.documentElement.scrollWidth") <= width
    page.call("Emulation.clearDeviceMetricsOverride")


def test_text_stays_readable_in_the_dark_and_on_paper(page: Page) -> None:
    colours = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
    )
    light = page.value(colours)
    page.call(
        "Emulation.setEmulatedMedia", media="screen", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    dark = page.value(colours)
    page.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    printed = page.value(colours)
    page.call("Emulation.setEmulatedMedia", media="", features=[])
    assert (light[0], printed[0], printed[1]) == ("rgb(255, 255, 255)", "rgb(255, 255, 255)", "rgb(0, 0, 0)")
    assert [sum(map(int, re.findall(r"\d+", colour))) > 380 for colour in dark] == [False, True]


def test_the_numbers_of_the_page_are_those_of_the_loss_table(
    reported: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (str(trained.study), "finetune.lr=[5e-4, 2e-3, 7e-3]", "--store", str(reported.parents[4]))
    assert main(["results", *arguments, "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["trials"] if row[L_RET] is not None]
    html = reported.read_text()
    body = html[html.index('<table id="losses"') :]
    shown = [[float(value) for value in re.findall(r'data-value="([^"]+)"', row)] for row in body.split("<tr>")[1:]]
    for row in rows:
        expected = [row[L_IM], row[L_RET], row[L_RET] - row[L_IM], *(row[loss] for loss in LOSSES[2:]), row["tokens"]]
        assert [*row["axes"].values(), *expected] in shown
    after = [row[L_RET] for row in rows if row["axes"]["pretrain.exposure"] == 1]
    assert f"<b>{sum(after) / len(after):.3f}</b>" in html


def test_a_choice_in_a_filter_shows_the_trials_that_have_it_and_counts_them(page: Page) -> None:
    def choose(list_: int, value: str) -> None:
        page.value(
            f"(() => {{const s = document.querySelectorAll('#section-losses .filters select')[{list_}]; s.value = '{value}';"
            "s.dispatchEvent(new Event('change', {bubbles: true}))})()"
        )

    shown = "[...document.querySelectorAll('#losses tbody tr')].filter(r => r.offsetHeight).map(r => r.cells[1].textContent)"
    count = "document.querySelector('#section-losses .filters output').textContent"
    assert page.value(count) == "6 of 6"
    choose(1, "0.002")
    assert page.value(shown) == ["0.002", "0.002"]
    choose(0, "1")
    assert (page.value(shown), page.value(count)) == (["0.002"], "1 of 6")
    choose(0, "all")
    choose(1, "all")
    assert page.value(count) == "6 of 6"


def test_a_click_on_a_column_sorts_the_losses_and_a_second_click_reverses_them(page: Page) -> None:
    column = "[...document.querySelectorAll('#losses tbody tr')].map(row => row.cells[3].textContent)"
    assert page.value("document.querySelector('#losses th:nth-child(4)').textContent") == "L_ret"
    page.click("#losses th:nth-child(4) button")
    up = page.value(column)
    page.click("#losses th:nth-child(4) button")
    down = page.value(column)
    known = [value for value in up if value[0].isdigit()]
    assert known == sorted(known, key=float)
    assert len(known) == 4
    assert down == [*reversed(known), *up[4:]]
    assert page.value("document.querySelector('#losses th:nth-child(4)').ariaSort") == "descending"


def test_a_click_enlarges_a_figure_and_escape_closes_it(page: Page) -> None:
    width = "document.querySelector('%s').getBoundingClientRect().width"
    small = page.value(width % "#figure-frontiers .drawing svg")
    page.click("#figure-frontiers .drawing")
    assert page.value("document.querySelector('dialog').open")
    assert page.value(width % "dialog svg") > 1.5 * small
    page.press("Escape")
    page.value("new Promise(requestAnimationFrame)")
    assert page.value("document.querySelector('dialog')") is None
    assert page.errors == []


def test_the_json_document_names_every_file_and_verdict(
    reported: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    store = reported.parents[4]
    assert main(["report", str(trained.study), "--store", str(store), "--no-overlay", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["study"], document["trials"], document["missing"]) == ("tiny", 4, 0)
    assert Path(document["report"]) == store / "studies" / "tiny" / "report.html"
    for figure in document["figures"]:
        assert all(Path(figure[kind]).is_file() for kind in ("png", "svg", "data"))
    assert document["verdicts"]
    assert all(verdict["outcome"] and verdict["effects"] for verdict in document["verdicts"])


def test_a_page_of_unprepared_data_says_so(trained: Trained, tmp_path: Path) -> None:
    assert main(["report", str(trained.study), "--store", str(tmp_path / "none")]) == 0
    text = text_of((tmp_path / "none" / "studies" / "tiny" / "report.html").read_text())
    assert "The data is not prepared" in text
    assert "Partial results: 4 of 4 trials are missing." in text
    assert "not prepared" in text


def test_a_page_of_many_trials_is_light_on_data(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    file = check_study(tiny_fields(), tmp_path / "runs" / "tiny.yaml")
    file.path.write_text("study: tiny\n")
    rows = method_rows(tuple(PIPELINES), ("unmixed", "mixed"), seeds=(0, 1, 2))
    figures = draw_paper_figures(store.root, "tiny", rows)
    origin = Origin("tiny", {"retain": "0"}, None, "a machine", 1.8e9)
    path = write_report([(file, made_up_facts(file), rows)], tree, store, rows, figures, verdicts(rows), origin)
    assert len(rows) == 288
    assert path.read_text().count('class="panel"') == 8
    assert path.stat().st_size < 2_000_000


def test_the_page_lists_interruptions_and_attempts(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    finish_all(tree, store, lambda stage: stage != "finetune")
    run = kinds(tree, store, "finetune")[0]
    run.begin(1)
    run.stop("preempted")
    run.begin(1)
    run.note(["no undamaged checkpoint is left: the stage starts over"])
    run.fail("it broke", "crash")
    text = text_of(made_report(tmp_path / "runs"))
    for expected in (
        "2 interruptions",
        "preempted",
        "no undamaged checkpoint is left",
        "crash",
        "runs with more than one: 1",
    ):
        assert expected in text, expected
    assert "1 failed" in text
    assert "are missing; 1 stage failed." in text
    assert f"failed: finetune {run.key[:8]} (" in text


def test_the_study_files_head_is_the_question_and_is_escaped(tmp_path: Path) -> None:
    _, store = registered(tmp_path / "runs")
    (store.root / "tiny.yaml").write_text("# No\n  \n# Is <b>it</b> so?\n# <script>alert(1)</script>\nstudy: tiny\n")
    html = made_report(store.root)
    assert ">Is &lt;b&gt;it&lt;/b&gt; so? &lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert html.count("<script>") == 1
    assert "\n# Is &lt;b&gt;it" in html


def test_more_than_two_hundred_trials_are_collapsed(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    rates = [1e-5 * number for number in range(1, 202)]
    html = made_report(tmp_path / "runs", grid={"finetune.lr": rates})
    assert "<details><summary>201 trials</summary>" in html


def test_every_choice_is_compared_with_the_paper(tmp_path: Path) -> None:
    grid = {"posttrain.lr": [1e-4, 5e-3], "posttrain.dropout": [0, 0.1], "finetune.lr": [5e-5, 2e-4]}
    fields = tiny_fields(**{"posttrain.min_lr": 5e-5, "finetune.tokens": "200M", "grid": grid})
    table = deviations(check_study(fields, tmp_path / "tiny.yaml"), 135_000_000)
    found = {row[0].text: [cell.text for cell in row[1:4]] for row in table.rows}
    assert found["posttrain.lr"] == ["0.0001; 0.005", "0.0001; 0.0002; 0.0005; 0.001; 0.005", SAME]
    assert found["posttrain.min_lr"][2] == found["posttrain.clip"][2] == found["posttrain.betas"][2] == SAME
    assert found["finetune.tokens"] == ["200M", "200M", SAME]
    assert found["posttrain.dropout"] == ["0; 0.1", "0; 0.02; 0.05", DIFFERS]
    assert found["model.layers"] == ["2", "30", DIFFERS]
    assert found["finetune.lr"][2] == found["pretrain.lr"][2] == found["finetune.warmup"][2] == OPEN
    assert found["posttrain.corpus"] == ["music", "MusicPile, FLAN", DIFFERS]
    assert re.fullmatch(
        r"Of \d+ fields \d+ are as in the paper, \d+ differ from it, \d+ are left open by it\.", summary(table)
    )
    at_1b = {row[0].text: row for row in deviations(check_study(fields, tmp_path / "tiny.yaml"), 1_030_000_000).rows}
    assert at_1b["pretrain.lr"][2].text == "0.0005"
    assert [cell.text for cell in at_1b["model.layers"][1:4]] == ["2", "24", DIFFERS]


def test_the_dropout_of_lora_is_that_of_its_adapters_and_the_paper_is_cited_where_it_says_so() -> None:
    file = read_study("figure7")
    rows = {row[0].text: [cell.text for cell in row] for row in deviations(file, 135_000_000).rows}
    assert rows["posttrain.lora.dropout"][2:] == ["0; 0.02; 0.05", SAME, "Table 9"]
    assert rows["posttrain.dropout"][1] == "0"
    assert rows["posttrain.replay"][4] == "Section 4.4"
    assert rows["finetune.tokens"][4] == "Section 3.3"
    assert rows["tokenizer.hf"][2:] == ["not named; 49,152 entries", OPEN, "Table 2"]
    assert rows["model.hidden"][1:] == ["576", "576", OPEN, "SmolLM2-135M as published; the paper says SmolLM2-style"]


def test_only_a_study_of_the_paper_is_compared_with_it(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert "Deviations from the paper" not in made_report(tmp_path / "runs")
    assert "Deviations from the paper" in made_report(tmp_path / "runs", study="my-figure2")


def test_a_verdict_shows_its_effects_with_intervals_and_seeds() -> None:
    statement = Statement("1b", "L_ret falls", "a subject (with brackets)", "(L_ret, L_ft)")
    verdict = judge(statement, -1, [("slope, nats", effect_of({0: -0.1, 1: -0.12, 2: -0.11}))])
    (group,) = forest([verdict])
    assert (group.number, group.name, group.source) == ("1b", "L_ret falls", "Section 4.2, Figure 3a")
    (row,) = group.rows
    assert (row.subject, row.plane) == ("a subject (with brackets)", "(L_ret, L_ft)")
    assert (row.outcome, row.seeds) == ("supported", "decided at 3")
    assert [cell.text for cell in row.effects.rows[0]][:2] == ["slope, nats", "-0.110"]
    assert re.fullmatch(r"-0\.\d+ to -0\.\d+", row.effects.rows[0][2].text)
    assert re.search(r"p 0\.0027,", row.effects.caption)
    assert row.bar is not None
    assert row.bar.start is not None
    assert 50 < row.bar.start < row.bar.at, "support lies on the right, whatever the sign of the effect"


def test_an_interval_beyond_the_scale_is_cut_with_an_arrow() -> None:
    wide = judge(Statement("1b", "L_ret falls"), -1, [("slope, nats", effect_of({0: -0.1, 1: 0.12}))])
    near = judge(Statement("1b", "L_ret falls"), -1, [("slope, nats", effect_of({0: -0.1, 1: -0.11}))])
    rows = forest([wide, near])[0].rows
    assert [row.bar and row.bar.cut for row in rows] == ["left right", ""]


def test_an_undecided_verdict_says_how_many_seeds_would_decide_it() -> None:
    noisy = judge(Statement("1b", "L_ret falls"), -1, [("slope", effect_of({0: -0.1, 1: 0.02, 2: -0.11}))])
    decided = judge(Statement("1b", "L_ret falls"), -1, [("slope", effect_of({0: -0.1, 1: -0.12, 2: -0.11}))])
    alone = judge(Statement("1b", "L_ret falls"), -1, [("slope", effect_of({0: -0.1}))])
    seeds = [row.seeds for row in forest([noisy, decided, alone])[0].rows]
    assert seeds == ["about 13", "decided at 3", "unknown before 2 seeds"]
    at_look = judged_at(Look(1, (3, 5)), noisy)
    assert forest([at_look])[0].rows[0].seeds == "at most 5", "the seeds of all looks are fixed"


def test_an_inlined_figure_keeps_its_shape_follows_the_page_and_loses_its_addresses() -> None:
    drawn = (
        '<?xml version="1.0"?><!DOCTYPE svg PUBLIC "x" "http://example.org/svg.dtd">\n'
        '<svg width="72pt" height="36pt" viewBox="0 0 72 36" xmlns="http://www.w3.org/2000/svg" version="1.1">'
        '<metadata>http://example.org</metadata><defs><path id="a" style="stroke: #1c1f24"/></defs><use xlink:href="#a"/>'
        '<g clip-path="url(#a)" transform="scale(1.23456)"/><text>0.7581</text></svg>'
    )
    svg = page_element(drawn, "figure2", 'a "title"')
    assert "example.org" not in svg
    assert 'viewBox="0 0 72 36"' in svg
    assert 'aria-label="a &quot;title&quot;"' in svg
    assert '<path id="figure2-a" style="stroke: var(--ink)"/></defs><use xlink:href="#figure2-a"/>' in svg
    assert '<g clip-path="url(#figure2-a)" transform="scale(1.23)"/>' in svg
    assert "<text>0.7581</text>" in svg


def test_the_table_of_stages_has_every_field_of_optimisation_also_at_its_default() -> None:
    fields = tiny_fields(**{"pretrain.schedule": {"wsd": 0.25}, "finetune.optimizer": "muon", "seed": 3})
    file = check_study(fields, Path("tiny.yaml"))
    rows = {name.text: [cell.text for cell in cells] for name, *cells in budgets(file).rows}
    assert set(Optimisation.model_fields) - {"schedule"} <= set(rows)
    assert rows["optimizer"] == ["adamw", "adamw", "muon"]
    assert rows["schedule.wsd"] == ["0.25", "", ""]
    assert rows["schedule"] == ["", "cosine", "cosine"]
    assert rows["floor"] == ["lower"] * 3
    assert rows["decay"] == ["matrices"] * 3
    assert rows["seed"] == ["3 (the study's)"] * 3
    assert rows["early_stopping"] == ["", "none", ""]
