"""Verdicts: results with a known effect get the right verdict, and a study gets verdicts only on what it has."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from random import Random

import pytest

from retain.results.claims.frontier import REACTIVE
from retain.results.claims.judging import OURS, Verdict
from retain.results.claims.verdicts import verdicts
from retain.results.figures.published import published
from retain.results.store.loss_table import Row
from retain.sweeps.schema.read import read_study
from retain.sweeps.schema.section import LOSSES

IMMEDIATE, RETAINED, FINETUNING, PRETRAINING = LOSSES
EXPOSURES = (0, 0.25, 0.5, 0.75, 1)
Loss = Callable[[float], float]


def row(axes: Row, immediate: float | None, retained: float | None, tuned: float | None, general: float | None) -> Row:
    losses = dict(zip(LOSSES, (immediate, retained, tuned, general), strict=True))
    return {"axes": axes, "keys": {}, **losses, "tokens": 1}


def exposure_rows(
    immediate: Loss,
    retained: Loss,
    seeds: int = 3,
    noise: float = 0.002,
    exposures: Sequence[float] = EXPOSURES,
    sizes: Sequence[str | None] = (None,),
    salt: int = 0,
) -> list[Row]:
    """Figure 3's grid with these losses over exposure; seeds are 0.3 nats apart, which pairing removes."""
    rows = []
    for size, seed, exposure in itertools.product(sizes, range(seeds), exposures):
        random = Random(f"{salt} {seed} {exposure}")
        axes = {"pretrain.exposure": exposure, "seed": seed}
        axes |= {"posttrain.tokens": size} if size else {}
        shift = 0.3 * seed
        before, after = (loss(exposure) + shift + random.gauss(0, noise) for loss in (immediate, retained))
        rows.append(row(axes, before, after, 3.0, 4.0))
    return rows


def frontier_rows(
    shifts: dict[str, float],
    seeds: Iterable[int] = range(3),
    noise: float = 0.002,
    pipeline: str | None = None,
    salt: int = 0,
) -> list[Row]:
    """Four fine-tuning rates of each method along one curve, moved by the method's shift in all three losses."""
    rows = []
    for (method, shift), seed, strength in itertools.product(shifts.items(), seeds, range(4)):
        random = Random(f"{salt} {method} {seed} {strength}")
        axes = {"method": method, "finetune.lr": strength, "seed": seed} | ({"pipeline": pipeline} if pipeline else {})
        losses = (2 + 0.1 * strength**2, 3 - 0.3 * strength, 4 - 0.1 * strength)
        retained, tuned, general = (loss + shift + 0.2 * seed + random.gauss(0, noise) for loss in losses)
        rows.append(row(axes, 1.5, retained, tuned, general))
    return rows


def outcomes(rows: Sequence[Row], matched: bool = False) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for verdict in verdicts(rows, matched):
        found.setdefault(verdict.claim, set()).add(verdict.outcome)
    return found


def the(claim: str, found: Iterable[Verdict]) -> Verdict:
    (verdict,) = [verdict for verdict in found if verdict.claim == claim]
    return verdict


def flat(exposure: float) -> float:
    return 1.5


def falling(exposure: float) -> float:
    return 2.2 - 0.2 * exposure


def rising(exposure: float) -> float:
    return 1.5 + 0.2 * exposure


def valley(exposure: float) -> float:
    return 2.0 + (exposure - 0.5) ** 2


def hill(exposure: float) -> float:
    return 2.0 - (exposure - 0.5) ** 2


def test_a_latent_benefit_is_supported() -> None:
    assert outcomes(exposure_rows(flat, falling)) == {"1a": {"supported"}, "1b": {"supported"}}


@pytest.mark.parametrize(
    ("immediate", "retained", "expected"),
    [
        (falling, falling, {"1a": {"not supported"}, "1b": {"supported"}}),
        (rising, falling, {"1a": {"not supported"}, "1b": {"supported"}}),
        (hill, falling, {"1a": {"not supported"}, "1b": {"supported"}}),
        (flat, rising, {"1a": {"not supported"}, "1b": {"not supported"}}),
        (lambda exposure: 1.5 - 0.02 * exposure, falling, {"1a": {"supported"}, "1b": {"supported"}}),
    ],
    ids=[
        "L_im falls as much",
        "L_im rises",
        "L_im rises between",
        "L_ret rises",
        "L_im falls by a tenth of the saving",
    ],
)
def test_a_latent_benefit_needs_a_flat_l_im_and_a_falling_l_ret(
    immediate: Loss, retained: Loss, expected: dict[str, set[str]]
) -> None:
    assert outcomes(exposure_rows(immediate, retained)) == expected


def test_without_an_effect_at_least_nine_of_ten_studies_are_undecided() -> None:
    for claim, study in (
        ("1b", lambda salt: exposure_rows(flat, flat, noise=0.1, salt=salt)),
        ("3", lambda salt: frontier_rows({"unmixed": 0, "mixed": 0}, noise=0.1, salt=salt)),
    ):
        found = [verdict for salt in range(100) for verdict in verdicts(study(salt)) if verdict.claim == claim]
        undecided = sum(verdict.outcome == "undecided" for verdict in found)
        assert 0.9 * len(found) <= undecided < len(found), claim


def test_the_matched_optimum_is_supported_if_an_interior_exposure_is_best() -> None:
    assert outcomes(exposure_rows(rising, valley), matched=True) == {"2a": {"supported"}, "2b": {"supported"}}


@pytest.mark.parametrize("retained", [falling, rising, hill])
def test_the_matched_optimum_is_not_supported_if_an_end_is_best(retained: Loss) -> None:
    assert outcomes(exposure_rows(falling, retained), matched=True) == {
        "2a": {"not supported"},
        "2b": {"not supported"},
    }


def test_choosing_the_best_of_several_noisy_exposures_does_not_fake_an_optimum() -> None:
    """Without an effect, the lowest of three interior values lies below both ends half of the time."""
    found = [verdicts(exposure_rows(flat, flat, seeds=4, noise=0.1, salt=salt), matched=True) for salt in range(200)]
    assert sum(the("2b", each).outcome == "supported" for each in found) <= 200 * 0.05


def test_an_axis_decides_which_rows_are_compute_matched() -> None:
    rows = exposure_rows(flat, falling)
    both = [{**each, "axes": {**each["axes"], "allocation": name}} for each in rows for name in ("additive", "matched")]
    assert set(outcomes(both)) == {"1a", "1b", "2a", "2b"}


def test_each_size_and_pipeline_gets_its_own_verdict() -> None:
    sizes = verdicts(exposure_rows(flat, falling, sizes=("300k", "100k")))
    assert [verdict.claim for verdict in sizes] == ["1a", "1a", "1b", "1b"]
    assert "D_post of 100k tokens" in sizes[0].sentence
    assert "D_post of 300k tokens" in sizes[1].sentence
    pipelines = [
        *frontier_rows({"unmixed": 0, "mixed": -0.2}, pipeline="music-chemistry"),
        *frontier_rows({"unmixed": 0, "mixed": 0.2}, pipeline="music-instruction"),
    ]
    found = {verdict.sentence.split(",")[0]: verdict.outcome for verdict in verdicts(pipelines)}
    assert found == {"music-chemistry": "supported", "music-instruction": "not supported"}


def test_a_frontier_claim_is_judged_in_both_planes() -> None:
    found = verdicts(frontier_rows({"unmixed": 0, "mixed": -0.2}))
    assert [(verdict.claim, verdict.outcome) for verdict in found] == [("3", "supported")] * 2
    assert ["(L_ret, L_ft)" in verdict.sentence for verdict in found] == [True, False]
    assert ["(L_pre, L_ret)" in verdict.sentence for verdict in found] == [False, True]
    (_, gain), (label, gap) = found[0].evidence
    assert gain.mean > 0
    assert "gap in L_ret at matched L_ft" in label
    # The curve falls, so moving it left by 0.2 adds to moving it down by 0.2.
    assert gap.mean < -0.2


def test_dropout_and_replay_are_judged_alone_and_on_top_of_mixing() -> None:
    shifts = {"unmixed": 0.0, "mixed": -0.3, "unmixed+dropout": -0.1, "mixed+dropout": -0.55}
    good = outcomes(frontier_rows(shifts))
    assert good == {claim: {"supported"} for claim in ("3", "4a", "4b", "4c", "4d", "4e")}
    shifts |= {"unmixed+dropout": -0.4, "mixed+dropout": -0.2}
    bad = outcomes(frontier_rows(shifts))
    assert bad == {claim: {"supported" if claim in ("3", "4b") else "not supported"} for claim in good}
    assert set(outcomes(frontier_rows({"mixed": 0, "mixed+replay": -0.1}))) == {"4a"}


def test_lora_is_judged_against_full_post_training() -> None:
    shifts = {"unmixed": -0.2, "mixed": -0.5, "unmixed+lora": 0.0, "mixed+lora": -0.3}
    assert outcomes(frontier_rows(shifts)) == {claim: {"supported"} for claim in ("3", "5a", "5b", "5c")}


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_sentence_gives_effect_interval_and_seeds_and_one_seed_decides_nothing(seeds: int) -> None:
    rows = exposure_rows(flat, falling, seeds=seeds) + frontier_rows({"unmixed": 0, "mixed": -0.2}, seeds=range(seeds))
    for verdict in verdicts(rows):
        _, effect = verdict.evidence[0]
        assert effect.seeds == seeds
        assert math.isfinite(effect.mean)
        if seeds == 1:
            assert verdict.outcome == "undecided"
            assert "undecided at 1 seed" in verdict.sentence
            assert "no interval" in verdict.sentence
        else:
            assert f"{verdict.outcome} at 3 seeds" in verdict.sentence
            assert "95% interval" in verdict.sentence


def test_a_study_without_a_seed_axis_has_one_seed() -> None:
    rows = exposure_rows(flat, falling, seeds=1)
    for each in rows:
        del each["axes"]["seed"]
    assert {verdict.evidence[0][1].seeds for verdict in verdicts(rows)} == {1}


def test_each_verdict_names_its_place_in_the_paper_or_that_the_claim_is_ours() -> None:
    shifts = {"unmixed": 0.0, "mixed": -0.3, "unmixed+replay": -0.1, "mixed+replay": -0.55}
    found = {verdict.claim: verdict for verdict in verdicts(exposure_rows(flat, falling) + frontier_rows(shifts))}
    assert {claim for claim, verdict in found.items() if verdict.source == OURS} == {"4d"}
    assert found["4e"].source == "Section 4.4"
    assert "mixing improves the frontier on top of replay" in found["4e"].sentence
    assert found["1a"].source == "Section 4.2, Figure 3a"


def test_a_study_gets_verdicts_only_on_what_it_has() -> None:
    assert verdicts([]) == []
    for exposures, matched in itertools.product(((0,), (0.5,), (0.25, 0.5)), (False, True)):
        assert verdicts(exposure_rows(flat, falling, exposures=exposures), matched) == []
    assert verdicts(frontier_rows({"mixed": 0})) == []
    assert set(outcomes(exposure_rows(flat, falling, exposures=(0, 1)), matched=True)) == {"2a"}
    one_point = [each for each in frontier_rows({"unmixed": 0, "mixed": -0.2}) if each["axes"]["finetune.lr"] == 0]
    assert verdicts(one_point) == []


def test_without_results_a_claim_is_undecided_at_zero_seeds() -> None:
    rows = exposure_rows(flat, falling) + frontier_rows({"unmixed": 0, "mixed": -0.2})
    for each in rows:
        each.update(dict.fromkeys(LOSSES))
    found = verdicts(rows)
    assert [verdict.claim for verdict in found] == ["1a", "1b", "3", "3"]
    assert all(verdict.outcome == "undecided" and "at 0 seeds" in verdict.sentence for verdict in found)


def test_a_seed_that_lacks_an_exposure_is_left_out() -> None:
    rows = exposure_rows(flat, falling, seeds=4)
    rows[2][RETAINED] = None
    found = the("1b", verdicts(rows))
    assert sorted(found.evidence[0][1].per_seed) == [1, 2, 3]
    assert "1 of 4 settings" in found.note


def test_a_method_with_more_finished_trials_gains_nothing_by_it() -> None:
    """Both methods are equal, but the best checkpoints of one are not finished."""
    rows = frontier_rows({"unmixed": 0, "mixed": 0}, noise=0)
    for each in rows:
        if each["axes"]["method"] == "unmixed" and each["axes"]["finetune.lr"] < 2:
            each[RETAINED] = None
    for verdict in verdicts(rows):
        assert verdict.evidence[0][1].per_seed == {0: 0, 1: 0, 2: 0}
        assert "6 checkpoints are left out" in verdict.note


def test_a_method_without_results_leaves_the_others_without_counterparts() -> None:
    rows = frontier_rows({"unmixed": 0, "mixed": 0})
    for each in rows:
        each |= dict.fromkeys(LOSSES) if each["axes"]["method"] == "mixed" else {}
    for verdict in verdicts(rows):
        assert verdict.told == ("hypervolume gained by mixed over unmixed, squared nats", verdict.told[1])
        assert verdict.told[1].seeds == 0
        assert "12 checkpoints are left out" in verdict.note


def test_a_curve_averages_only_settings_that_have_every_exposure() -> None:
    """A rate with very different losses that lacks λ = 1 would bend the curve."""
    rows = [
        {
            **each,
            **{loss: each[loss] + 3 * rate for loss in (IMMEDIATE, RETAINED)},
            "axes": {**each["axes"], "finetune.lr": rate},
        }
        for rate in (0, 1)
        for each in exposure_rows(flat, falling, noise=0)
    ]
    rows = [each for each in rows if (each["axes"]["finetune.lr"], each["axes"]["pretrain.exposure"]) != (1, 1)]
    assert the("1b", verdicts(rows)).evidence[0][1].mean == pytest.approx(-0.2)


def test_methods_with_different_numbers_of_checkpoints_are_judged_at_equal_numbers() -> None:
    """Dropout has no effect but is tried at two rates with noise: the best of both is better, each alone is not."""
    rows = frontier_rows({"mixed": 0}, seeds=range(8), noise=0.1)
    for rate in (0.02, 0.05):
        for each in frontier_rows({"mixed+dropout": 0}, seeds=range(8), noise=0):
            random = Random(f"{rate} {each['axes']}")
            losses = {loss: each[loss] + random.gauss(0, 0.1) for loss in (RETAINED, FINETUNING, PRETRAINING)}
            rows.append({**each, **losses, "axes": {**each["axes"], "posttrain.dropout": rate}})
    found = next(verdict for verdict in verdicts(rows) if verdict.claim == "4a")
    assert found.outcome == "undecided"
    assert "Checkpoints per seed: mixed 4, mixed+dropout 8" in found.note
    (label, even), (gap_label, _), (plain_label, gain) = found.evidence
    assert "equal numbers of checkpoints" in label
    assert "equal numbers of checkpoints" in gap_label
    assert "does not decide" in plain_label
    assert even.mean < gain.mean
    assert gain.low > 0
    assert even.low < 0 < even.high


def test_a_method_with_more_values_of_an_axis_gains_nothing_by_it() -> None:
    """Both methods are equal, with noise, but one is tried at three rates; the third diverges, or fails at one setting."""
    rates = {"unmixed": [1], "mixed": [1, 2, 3]}
    rows = []
    for method, rate in ((method, rate) for method, own in rates.items() for rate in own):
        for each in frontier_rows({method: 0}, seeds=range(8), noise=0):
            random = Random(f"{method} {rate} {each['axes']}")
            losses = {loss: each[loss] + random.gauss(0, 0.1) for loss in (RETAINED, FINETUNING, PRETRAINING)}
            rows.append({**each, **losses, "axes": {**each["axes"], "posttrain.lr": rate}})
    found = verdicts(rows)
    assert [verdict.outcome for verdict in found] == ["undecided"] * 2
    assert all("Checkpoints per seed: unmixed 4, mixed 12" in verdict.note for verdict in found)
    assert all("equal numbers of checkpoints" in verdict.told[0] for verdict in found)
    third = [each for each in rows if each["axes"]["posttrain.lr"] == 3]
    for lost, counts in ((third[:1], "unmixed 4, mixed 12"), (third, "unmixed 4, mixed 8")):
        for each in lost:
            each |= dict.fromkeys(LOSSES)
        assert all(f"Checkpoints per seed: {counts}" in verdict.note for verdict in verdicts(rows))
        assert {verdict.told[1].seeds for verdict in verdicts(rows)} == {8}


def test_if_exposure_is_an_axis_mixed_is_its_highest_value() -> None:
    rows = []
    for exposure, shift in ((0, 0.0), (0.5, 0.4), (1, -0.2)):
        for each in frontier_rows({"any": shift}):
            axes = {name: value for name, value in each["axes"].items() if name != "method"}
            rows.append({**each, "axes": {**axes, "pretrain.exposure": exposure}})
    found = [verdict for verdict in verdicts(rows) if verdict.claim == "3"]
    assert [verdict.outcome for verdict in found] == ["supported"] * 2
    assert not any("Checkpoints per seed" in verdict.note for verdict in found)


def test_exposures_above_one_are_left_out() -> None:
    rows = exposure_rows(flat, lambda exposure: 2.2 - 0.2 * exposure if exposure <= 1 else 9.0, exposures=(0, 1, 4))
    assert outcomes(rows) == {"1a": {"supported"}, "1b": {"supported"}}


def test_effects_on_the_published_points_have_the_published_direction_but_one_seed_decides_nothing() -> None:
    for figure, matched in (("figure3a", False), ("figure3b", True)):
        rows = [
            row({"pretrain.exposure": exposure, "posttrain.tokens": before.name}, immediate, retained, None, None)
            for before, after in zip(
                published(figure, "immediate").curves, published(figure, "retained").curves, strict=True
            )
            for (exposure, immediate), (_, retained) in zip(before.points, after.points, strict=True)
        ]
        found = verdicts(rows, matched)
        assert len(found) == 6
        for verdict in found:
            assert verdict.outcome == "undecided"
            deciding = verdict.deciding_effects[: verdict.deciding // verdict.alternatives]
            assert all(effect.mean > 0 for effect in deciding), verdict.sentence
    assert any("not monotone" in verdict.note for verdict in found)


def test_the_points_of_a_search_get_no_verdicts() -> None:
    rows = exposure_rows(lambda _: 2.0, lambda exposure: 3.0 - exposure)
    assert verdicts(rows)
    assert verdicts([row | {"axes": row["axes"] | {"point": "p1"}} for row in rows]) == []


def test_recipes_that_differ_in_several_fields_get_no_verdicts() -> None:
    shifts = {"unmixed": 0.0, "mixed": -0.2}
    assert outcomes(frontier_rows(shifts))["3"] == {"supported"}
    names = {"unmixed": "default", "mixed": "recommended"}
    recipes = [row | {"axes": row["axes"] | {"recipe": names[row["axes"]["method"]]}} for row in frontier_rows(shifts)]
    assert verdicts(recipes) == []


@pytest.mark.parametrize("study", ["laptop-reactive", "reactive", "reactive-1b"])
def test_exposure_is_judged_against_every_remedy_of_the_reactive_studies_and_on_top_of_it(study: str) -> None:
    methods = {option.labels["method"] for option in read_study(study).cases["method"]}
    assert methods == {"unmixed", "mixed"} | {f"{base}+{name}" for base in ("unmixed", "mixed") for name in REACTIVE}
    shifts = {name: -0.1 * ("+" in name) - 0.3 * name.startswith("mixed") for name in methods}
    found = {verdict.sentence for verdict in verdicts(frontier_rows(shifts)) if verdict.outcome == "supported"}
    for words in REACTIVE.values():
        assert any(f"mixing improves the frontier more than {words}" in sentence for sentence in found)
        assert any(f"mixing improves the frontier on top of {words}" in sentence for sentence in found)
