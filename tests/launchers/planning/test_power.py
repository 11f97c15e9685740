"""`retain power`: seeds are planned from a pilot's spread with the rules that judge, and priced as `retain plan` does."""

import json
from pathlib import Path
from random import Random

import pytest

from retain.launchers.cli.app import main
from retain.launchers.planning.opened_study import open_study
from retain.launchers.planning.plan import plan_studies
from retain.launchers.planning.register import register
from retain.results.analysis.effects import SIDE
from retain.results.claims.judging import decide
from retain.results.claims.power import Pilot, chances
from tests.results.runs import finish
from tests.studies import linear_study, tiny_study

PILOT_AXES = {"pretrain.exposure": [0, 1], "seed": [0, 1, 2]}


@pytest.fixture(scope="module")
def piloted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study and its store, with three seeds finished by hand: L_ret falls by about 0.3 from λ = 0 to 1."""
    folder = tmp_path_factory.mktemp("power")
    study, store = tiny_study(folder, grid=PILOT_AXES), folder / "runs"
    store.mkdir()
    opened = open_study(str(study), (), store)
    register(opened.tree, opened.file, opened.facts, opened.store)
    for stage in opened.tree.stages.values():
        saved = 0.3 * stage.axes["pretrain.exposure"] if stage.stage == "finetune" else 0.0
        finish(opened.store.run(stage.key), 3.0 - saved + Random(f"{stage.stage} {stage.axes}").gauss(0, 0.15))
    return study, store


def power(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["power", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_each_claim_gets_its_seeds_and_each_number_of_seeds_its_price(
    piloted: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    study, store = piloted
    plan = json.loads(power(capsys, study, "--store", store, "--most", 60, "--json"))
    assert (plan["study"], plan["pilot"], plan["pilot_seeds"], plan["chance"]) == ("tiny", "tiny", 3, 0.8)
    claims = {claim["claim"]: claim for claim in plan["claims"]}
    assert set(claims) == {"1a", "1b"}
    assert len(claims["1a"]["effects"]) == 2
    falling = claims["1b"]
    (effect,) = falling["effects"]
    assert effect["mean"] < 0 < effect["spread"]
    assert falling["seeds"] < falling["cautious_seeds"]
    for price in plan["prices"]:
        seeds = f"seed=[{','.join(map(str, range(price['seeds'])))}]"
        planned = plan_studies([str(study)], [seeds], store, "H100").totals
        assert price["totals"]["tokens_to_train"] == planned.tokens_to_train
        assert price["totals"]["trials"] == planned.trials == 2 * price["seeds"]
    assert falling["seeds"] in [price["seeds"] for price in plan["prices"]]
    text = power(capsys, study, "--store", store)
    assert "enough to decide with a probability of 80%" in text
    assert "stages to train" in text


def test_a_smaller_effect_that_is_asked_for_needs_more_seeds(
    piloted: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    study, store = piloted

    def seeds(effect: float) -> int | None:
        plan = json.loads(power(capsys, study, "--store", store, "--effect", effect, "--most", 100, "--json"))
        assert plan["effect"] == effect
        return next(int(claim["seeds"]) for claim in plan["claims"] if claim["claim"] == "1b")

    assert (seeds(0.15) or 0) > (seeds(0.5) or 0) >= 2


def test_another_study_of_the_store_may_be_the_pilot(
    piloted: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    study, store = piloted
    larger = tiny_study(study.parent / "larger", study="larger", grid=PILOT_AXES, **{"finetune.tokens": 10240})
    plan = json.loads(power(capsys, larger, "--pilot", study, "--store", store, "--json"))
    assert (plan["study"], plan["pilot"]) == ("larger", "tiny")


def test_without_two_finished_seeds_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "laptop-figure3a", "--store", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "laptop-figure3a: the store" in message
    assert "seed=[0,1,2]" in message
    assert "--pilot" in message


def test_the_simulated_chance_is_that_of_the_t_test_for_one_effect() -> None:
    """Against the power of a two-sided t-test at 5%, from the noncentral t distribution."""
    import numpy as np
    from scipy.stats import nct, t

    deviations = np.array([[1.0], [-1.0]]) / np.sqrt(2)
    found = chances(Pilot(np.array([0.8]), deviations, 1))
    for seeds in (3, 8, 15, 30):
        limit, shift = t.ppf(0.975, seeds - 1), 0.8 * np.sqrt(seeds)
        exact = nct.sf(limit, seeds - 1, shift) + nct.cdf(-limit, seeds - 1, shift)
        assert found[seeds] == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize(("effects", "alternatives"), [(8, 1), (6, 3), (4, 4)])
def test_the_simulated_chance_of_a_claim_with_several_effects_is_that_of_the_rule_that_judges(
    effects: int, alternatives: int
) -> None:
    import numpy as np
    from scipy.stats import ttest_1samp

    values = np.random.Generator(np.random.PCG64(1)).normal(0.08, 0.1, (4, effects))
    pilot = Pilot(values.mean(axis=0), values - values.mean(axis=0), alternatives)
    random, decided = np.random.Generator(np.random.PCG64(2)), []
    for _ in range(500):
        noise = random.standard_normal((6, 4)) @ pilot.deviations / np.sqrt(3)
        above = ttest_1samp(pilot.means + noise, 0, alternative="greater").pvalue.reshape(alternatives, -1)
        decided.append(min(decide(above, 1 - above)) < SIDE)
    assert chances(pilot)[6] == pytest.approx(np.mean(decided), abs=0.08)


def test_a_study_that_no_claim_is_about_is_not_asked_for_more_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["power", str(linear_study(tmp_path)), "--store", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err.startswith("retain: linear: no claim is about this study, so it has no verdicts")
