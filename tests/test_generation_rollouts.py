"""Rollouts on few rows: what is drawn is what is trained on, and the work is done once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from fourstage.data.batch import Batch, Example
from fourstage.generation.engine import Completion, Engine
from fourstage.generation.sampling import Sampling
from fourstage.model.families import FAMILIES
from fourstage.model.transformer import Transformer
from fourstage.objectives.logprobs import logprobs
from tiny_models import tiny_family, tiny_model

# Five completions to each prompt; some end early, some at the limit.
GROUP = 5
LENGTHS = (3, 9, 1, 17, 9, 30)
PROMPTS = [
    [(7 * i + 3 * j) % 60 for j in range(n)] for i, n in enumerate(LENGTHS) for _ in range(GROUP)
]
STOPS = (1, 2, 3, 4)
NEW = 16


def rollouts(model: Transformer, rows: int, new: int = NEW) -> list[Completion]:
    sampling = Sampling(max_new_tokens=new, stop_ids=STOPS)
    return Engine(model, rows).generate(PROMPTS, sampling, range(len(PROMPTS)))


def of_the_trainer(model: Transformer, done: list[Completion]) -> torch.Tensor:
    """[drawn tokens] log-probabilities by the pass that updates are made with."""
    examples = []
    for prompt, each in zip(PROMPTS, done, strict=True):
        tokens = np.array([*prompt, *each.tokens])
        examples.append(Example(tokens, np.arange(len(tokens)) >= len(prompt)))
    batch = Batch.language(examples)
    return logprobs(model, batch).detach()[batch.streams["loss_weights"] != 0]


@pytest.mark.parametrize("rows", [4, 256])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_of_rollouts_are_the_trainers(family, rows):
    model = tiny_family(family)
    with torch.no_grad():
        # Logits of the size of a trained model's: 1e-5 is what float32 has left at that.
        for weight in model.parameters():
            weight.mul_(0.5)
    done = rollouts(model, rows)
    found = torch.from_numpy(np.concatenate([each.logprobs for each in done]))
    torch.testing.assert_close(found, of_the_trainer(model, done), atol=1e-5, rtol=0)
    assert {each.finish for each in done} == {"stop", "length"}


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 12, 29])
def test_what_is_drawn_does_not_depend_on_the_rows_there_are(rows):
    model = tiny_model()
    for one, other in zip(rollouts(model, rows), rollouts(model, 256), strict=True):
        assert (one.tokens, one.finish) == (other.tokens, other.finish)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """Prompts read by each pass of several tokens."""
    seen: list[int] = []
    forward = Transformer.forward

    def watched(self, tokens, layout, *more, **others):
        seen.append(layout.documents)
        return forward(self, tokens, layout, *more, **others)

    monkeypatch.setattr(Transformer, "forward", watched)
    return seen


@pytest.fixture
def stepped(monkeypatch) -> list[int]:
    """Rows of each step."""
    seen: list[int] = []
    decode = Transformer.decode

    def watched(self, tokens, cache):
        seen.append(len(tokens))
        return decode(self, tokens, cache)

    monkeypatch.setattr(Transformer, "decode", watched)
    return seen


@pytest.mark.parametrize("rows", [1, 3, 7, 256])
def test_a_prompt_is_read_once_for_all_of_its_completions(read, rows):
    rollouts(tiny_model(), rows)
    assert sum(read) == len(LENGTHS)


def test_rows_are_given_to_requests_that_wait(stepped):
    done = rollouts(tiny_model(), 8)
    drawn = sum(len(each.tokens) for each in done)
    full = stepped.index(next(rows for rows in stepped if rows < 8))
    assert max(stepped) == 8 and all(rows == 8 for rows in stepped[:full])
    # Then fewer and fewer; what is drawn for rows that have ended is a small part.
    assert all(one >= other for one, other in pairwise(stepped[full:]))
    assert sum(stepped) < 1.25 * drawn


def test_requests_of_one_length_leave_no_row_idle(stepped):
    model = tiny_model()
    sampling = Sampling(max_new_tokens=6)
    done = Engine(model, 10).generate(PROMPTS, sampling, range(len(PROMPTS)))
    assert [len(each.tokens) for each in done] == [6] * 30
    assert stepped == [10] * 15


def test_requests_of_any_room_share_a_batch():
    """Contexts fill up while others go on: full rows make room and are drawn for no more."""
    model = tiny_model()
    prompts = [[5 + i % 9] * (48 - i) for i in range(40)]
    samplings = [Sampling(max_new_tokens=1 + 7 * i % 40, seed=i) for i in range(40)]
    together = Engine(model, 6).generate(prompts, samplings)
    for prompt, sampling, found in zip(prompts, samplings, together, strict=True):
        assert len(found.tokens) == min(sampling.max_new_tokens, 49 - len(prompt))
        alone = Engine(model).generate([prompt], sampling)[0]
        assert found.tokens == alone.tokens
