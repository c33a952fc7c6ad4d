"""Files: their shape is that of most rows, and what a part of a recipe takes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.shapes import (
    SHAPES,
    STAGES_OF,
    check_mapping,
    fits,
    misfit,
    needed,
    settle,
)
from fourstage.errors import InputError
from fourstage.recipe.data import Data


def test_the_shape_of_a_file_is_that_of_most_rows() -> None:
    assert settle(Counter({"messages": 2, "prompt": 1})) == "messages"


@given(st.dictionaries(st.sampled_from(sorted(SHAPES)), st.integers(1, 3), min_size=1))
def test_the_order_of_counting_does_not_decide(counts: dict[str, int]) -> None:
    assert settle(counts) == settle(dict(reversed(counts.items())))
    assert counts[settle(counts)] == max(counts.values())


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_shape_fits_itself(shape: str) -> None:
    assert fits(shape, shape)


@pytest.mark.parametrize(
    ("shape", "majority"),
    [
        ("prompt", "messages"),
        ("text", "messages"),
        ("strings", "text"),
        ("text", "transcript"),
        ("implicit-prompt", "preference"),
        ("messages", "unpaired"),
        ("prompt-response", "preference"),
        ("prompt", "verifiable"),
    ],
)
def test_rows_of_another_shape_are_faults(shape: str, majority: str) -> None:
    assert not fits(shape, majority)
    assert SHAPES[shape] in misfit(shape, majority) and SHAPES[majority] in misfit(shape, majority)


@pytest.mark.parametrize(
    ("shape", "majority"),
    [
        ("transcript", "text"),
        ("verifiable", "question-answer"),
        ("question-answer", "verifiable"),
        ("verifiable", "prompt"),
        ("sharegpt", "messages"),
        ("preference", "implicit-prompt"),
    ],
)
def test_rows_that_lack_nothing_fit(shape: str, majority: str) -> None:
    assert fits(shape, majority)


def test_stages_are_fields_of_a_recipe() -> None:
    fields = {field for stages in STAGES_OF.values() for field in stages}
    assert fields == {"data.pretrain", "data.sft", "data.preferences", "data.prompts"}
    assert all(field.removeprefix("data.") in Data.model_fields for field in fields)


@pytest.mark.parametrize("kind", sorted(kind for kind, stages in STAGES_OF.items() if stages))
def test_every_kind_that_a_stage_takes_has_its_keys_told(kind: str) -> None:
    assert needed("comparison" if kind == "ranking" else kind)


def test_a_mapping_to_a_name_that_is_none_is_refused_with_the_nearest() -> None:
    check_mapping({"text": "body", "question": "q"})
    with pytest.raises(InputError, match=r"data.map.anwser: .* did you mean 'answer'"):
        check_mapping({"anwser": "a"})
