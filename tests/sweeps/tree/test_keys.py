"""The canonical text of recipes and the keys made from it."""

import json
import random
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.sweeps.tree.keys import KEY_LENGTH, canonical, payload_text, stage_key

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
NAMES = st.text("abcdef0123456789", min_size=KEY_LENGTH, max_size=KEY_LENGTH)


def typed(value: Any) -> Any:
    """A form that is equal for two values only if their types and contents are equal: 1, 1.0, True and "1" all differ."""
    if isinstance(value, dict):
        return "mapping", sorted((name, typed(item)) for name, item in value.items())
    if isinstance(value, list):
        return "list", [typed(item) for item in value]
    return type(value).__name__, repr(0.0 if value == 0 and isinstance(value, float) else value)


def reordered(value: Any, draw: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(name, reordered(item, draw)) for name, item in value.items()]
        draw.shuffle(items)
        return dict(items)
    return [reordered(item, draw) for item in value] if isinstance(value, list) else value


@given(VALUES)
def test_a_canonical_text_reproduces_its_value_exactly(value: Any) -> None:
    assert typed(json.loads(canonical(value))) == typed(value)


@given(VALUES, VALUES)
def test_two_values_have_the_same_text_only_if_they_are_equal(first: Any, second: Any) -> None:
    assert (canonical(first) == canonical(second)) == (typed(first) == typed(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [(1, 1.0), (1, True), (0, False), (1, "1"), (None, "null"), ([], {}), ([1, [2]], [[1], 2]), (0.1, 0.1 + 1.4e-17)],
)
def test_values_that_are_easily_confused_have_different_texts(first: Any, second: Any) -> None:
    assert canonical(first) != canonical(second)


@given(VALUES, st.randoms(use_true_random=False))
def test_a_key_does_not_depend_on_the_order_of_fields(value: Any, draw: random.Random) -> None:
    shuffled = reordered(value, draw)
    assert stage_key("pretrain", None, canonical(shuffled)) == stage_key("pretrain", None, canonical(value))


def test_negative_zero_is_zero_and_a_tuple_is_a_list() -> None:
    assert canonical(-0.0) == canonical(0.0) == "0.0"
    assert canonical((0.9, 0.95)) == canonical([0.9, 0.95])


@given(st.text())
def test_a_canonical_text_is_ascii_on_one_line(text: str) -> None:
    encoded = canonical({text: text})
    assert encoded.isascii()
    assert encoded.splitlines() == [encoded]


WITHOUT_EXACT_TEXT = [
    float("nan"),
    float("inf"),
    float("-inf"),
    object(),
    lambda: 0,
    print,
    {1: "a number as a name"},
    {None: 1},
    {("a",): 1},
    {1, 2},
    b"bytes",
    Decimal("0.1"),
    np.float64(0.1),
    np.int64(1),
    np.zeros(2),
    Path("a"),
    date(2026, 5, 12),
    1j,
    "\ud800",
]


@pytest.mark.parametrize("value", WITHOUT_EXACT_TEXT, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("place", [lambda value: value, lambda value: [0, value], lambda value: {"a": {"b": (value,)}}])
def test_a_value_without_an_exact_text_is_an_error_at_any_depth(value: Any, place: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical(place(value))


@given(st.sampled_from(["pretrain", "posttrain", "finetune"]), st.none() | NAMES, VALUES)
def test_the_payload_is_canonical_and_holds_everything_that_the_key_hashes(
    stage: str, parent: str | None, recipe: Any
) -> None:
    payload = payload_text(stage, parent, canonical(recipe))
    whole = json.loads(payload)
    assert payload == canonical(whole)
    assert (whole["stage"], whole["parent"], typed(whole["recipe"])) == (stage, parent, typed(recipe))


@given(NAMES, NAMES)
def test_stages_with_different_parents_have_different_keys(first: str, second: str) -> None:
    assert (stage_key("finetune", first, "{}") == stage_key("finetune", second, "{}")) == (first == second)


def test_the_same_recipe_has_a_different_key_in_each_kind_of_stage() -> None:
    keys = {stage_key(stage, "f" * KEY_LENGTH, '{"lr":0.1}') for stage in ("pretrain", "posttrain", "finetune")}
    assert len(keys) == 3
    assert all(len(key) == KEY_LENGTH and set(key) <= set("0123456789abcdef") for key in keys)
