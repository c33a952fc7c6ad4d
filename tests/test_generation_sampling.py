"""What drawing a token promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fourstage.errors import InputError
from fourstage.generation.sampling import Drawer, Sampling, invert, uniforms

LOGITS = torch.log(torch.tensor([0.02, 0.4, 0.13, 0.3, 0.15]))


def kept(**asked) -> list[int]:
    """Tokens that a sampling leaves in."""
    left = Drawer([Sampling(**asked)]).truncated(LOGITS.softmax(-1)[None])
    return left[0].nonzero().flatten().tolist()


def test_truncations_keep_what_their_definitions_say():
    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [1, 3]
    assert kept(top_k=1) == [1]
    assert kept(top_k=99) == [0, 1, 2, 3, 4]
    assert kept(top_p=0.39) == [1]
    assert kept(top_p=0.41) == [1, 3]
    assert kept(top_p=0.71) == [1, 3, 4]
    assert kept(min_p=0.5) == [1, 3]
    assert kept(min_p=0.9) == [1]
    # 0.4 of the two that are left is 0.57: top-p reads what top-k leaves.
    assert kept(top_k=2, top_p=0.5) == [1]
    assert kept(top_k=2, top_p=0.6) == [1, 3]


def test_truncations_agree_with_transformers():
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)) * 3
    for asked, warpers in [
        ({"top_k": 7}, [TopKLogitsWarper(7)]),
        ({"top_p": 0.83}, [TopPLogitsWarper(0.83)]),
        ({"min_p": 0.07}, [MinPLogitsWarper(0.07)]),
        ({"top_k": 9, "top_p": 0.6}, [TopKLogitsWarper(9), TopPLogitsWarper(0.6)]),
    ]:
        theirs = logits
        for warper in warpers:
            theirs = warper(None, theirs)
        ours = Drawer([Sampling(**asked)] * 200).truncated(logits.softmax(-1))
        assert torch.equal(ours > 0, theirs > -torch.inf)


def test_draws_follow_the_distribution():
    count = 40_000
    numbers = uniforms(range(count), 1)[:, 0]
    tokens, _ = Drawer([Sampling(temperature=2.0)] * count)(LOGITS.expand(count, -1), numbers)
    shares = torch.bincount(tokens, minlength=5) / count
    expected = (LOGITS / 2).softmax(-1)
    # Five standard errors of a share over so many draws.
    assert (shares - expected).abs().max() < 5 * (0.25 / count) ** 0.5


def test_uniforms_are_uniform_and_unrelated_over_seeds_and_positions():
    numbers = uniforms(range(2000), 50).numpy().astype(np.float64)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 * (1 / 12 / numbers.size) ** 0.5
    along_seeds = np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]
    along_positions = np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]
    assert max(abs(along_seeds), abs(along_positions)) < 5 / numbers.size**0.5
    assert np.array_equal(uniforms([7], 50)[0].numpy(), uniforms([3, 7], 9999)[1, :50].numpy())


def test_negative_and_huge_seeds_are_seeds():
    assert len({float(u) for u in uniforms([-1, 2**63 - 1, 2**70 + 1, 0], 1)}) == 4


def test_a_token_of_no_probability_is_never_drawn():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    for number in (0.0, 0.25, 0.5, 0.75, 1 - 2**-24):
        assert int(invert(probabilities, torch.tensor([number]))) in (1, 3)


def test_greedy_takes_the_first_of_equals_and_its_logprob_at_temperature_one():
    tokens, logprobs = Drawer([Sampling(temperature=0)])(LOGITS[None], torch.zeros(1))
    assert int(tokens[0]) == 1
    assert float(logprobs[0]) == pytest.approx(float(LOGITS.log_softmax(-1)[1]), abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.5},
        {"min_p": 1.0},
        {"max_new_tokens": 0},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_every_fault_is_named_at_once():
    with pytest.raises(InputError) as caught:
        Sampling(temperature=-1, top_p=2)
    assert len(caught.value.faults) == 2
