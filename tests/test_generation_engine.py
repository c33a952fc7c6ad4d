"""What batched, cached generation promises."""

from __future__ import annotations

import pytest
import torch

from fourstage.errors import InputError
from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Sampling
from tiny_models import logits_of, tiny_model

PROMPTS = [[(7 * i + j) % 60 for j in range(n)] for i, n in enumerate((3, 9, 1, 9, 30, 47, 2, 17))]


def uncached(model, prompt: list[int], new: int) -> list[int]:
    """Greedy continuation by reading everything anew at each step."""
    tokens = list(prompt)
    for _ in range(new):
        tokens.append(int(logits_of(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_the_cache_changes_nothing(kv_heads, qk_norm, activation):
    model = tiny_model(kv_heads=kv_heads, qk_norm=qk_norm, activation=activation)
    prompts = PROMPTS[:4]
    done = Engine(model).generate(prompts, Sampling(temperature=0, max_new_tokens=12))
    assert [each.tokens for each in done] == [uncached(model, prompt, 12) for prompt in prompts]


def test_logprobs_are_those_of_the_untruncated_distribution_at_the_temperature():
    model = tiny_model()
    sampling = Sampling(temperature=1.7, top_k=5, top_p=0.9, min_p=0.01, max_new_tokens=10)
    for prompt, done in zip(PROMPTS, Engine(model).generate(PROMPTS, sampling), strict=True):
        logits = logits_of(model, [*prompt, *done.tokens[:-1]])[len(prompt) - 1 :]
        expected = (logits / 1.7).log_softmax(-1)[range(len(done.tokens)), done.tokens]
        assert torch.allclose(torch.from_numpy(done.logprobs), expected, atol=2e-5)


def test_a_result_does_not_depend_on_the_rest_of_the_batch():
    model = tiny_model()
    samplings = [
        Sampling(temperature=0.8, max_new_tokens=20, stop_ids=(1, 2, 3), seed=1),
        Sampling(temperature=0, max_new_tokens=5, seed=2),
        Sampling(temperature=1.3, top_k=7, max_new_tokens=30, seed=3),
        Sampling(top_p=0.7, max_new_tokens=17, stop_ids=(4,), seed=4),
        Sampling(min_p=0.1, max_new_tokens=9, stop_ids=tuple(range(5, 20)), seed=5),
        Sampling(max_new_tokens=40, seed=6),
        Sampling(max_new_tokens=40, stop_ids=(8, 9), seed=7),
        Sampling(max_new_tokens=1, seed=8),
    ]
    together = Engine(model).generate(PROMPTS, samplings)
    in_pairs = Engine(model, max_batch=2).generate(PROMPTS[::-1], samplings[::-1])[::-1]
    for i, (prompt, sampling) in enumerate(zip(PROMPTS, samplings, strict=True)):
        alone = Engine(model).generate([prompt], sampling)[0]
        assert alone.tokens == together[i].tokens == in_pairs[i].tokens
        assert alone.finish == together[i].finish == in_pairs[i].finish
        assert list(Engine(model).stream(prompt, sampling)) == alone.tokens


def test_equal_prompts_with_different_seeds_differ_and_with_equal_seeds_agree():
    done = Engine(tiny_model()).generate(
        [PROMPTS[1]] * 6, Sampling(max_new_tokens=15), seeds=[1, 2, 3, 1, 2, 3]
    )
    texts = [tuple(each.tokens) for each in done]
    assert texts[:3] == texts[3:] and len(set(texts)) == 3


def test_a_completion_ends_with_its_stop_token_or_at_its_length():
    stops = tuple(range(10))
    done = Engine(tiny_model()).generate(
        [PROMPTS[0]] * 40, Sampling(max_new_tokens=12, stop_ids=stops), seeds=range(40)
    )
    for each in done:
        assert not set(each.tokens[:-1]) & set(stops)
        assert (each.finish == "stop") == (each.tokens[-1] in stops)
        assert each.finish == "stop" or len(each.tokens) == 12
        assert len(each.logprobs) == len(each.tokens)
    assert {each.finish for each in done} == {"stop", "length"}


def test_generation_fills_the_context_and_no_more():
    model = tiny_model()
    prompts = [[5] * n for n in (40, 47, 48)]
    done = Engine(model).generate(prompts, Sampling(temperature=0, max_new_tokens=100))
    assert [len(each.tokens) for each in done] == [9, 2, 1]
    assert done[0].tokens == uncached(model, prompts[0], 9)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [([], "empty"), ([5] * 49, "context holds 48"), ([60], "vocabulary"), ([-1], "vocabulary")],
)
def test_prompts_that_cannot_be_read_are_refused(prompt, words):
    with pytest.raises(InputError, match=words):
        Engine(tiny_model()).generate([[1], prompt], Sampling())


def test_generating_leaves_the_model_trainable_and_its_weights_alone():
    model = tiny_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    Engine(model).generate(PROMPTS, Sampling(max_new_tokens=4))
    from fourstage.model.layout import Layout

    model.logits(model(torch.arange(9), Layout([4, 5]))).sum().backward()
    assert all(torch.equal(weight, before[n]) for n, weight in model.state_dict().items())


def test_an_engine_uses_the_weights_of_the_moment():
    model = tiny_model()
    engine, sampling = Engine(model), Sampling(temperature=0, max_new_tokens=8)
    first = engine.generate(PROMPTS[:2], sampling)
    model.load_state_dict(tiny_model(seed=5).state_dict())
    second = engine.generate(PROMPTS[:2], sampling)
    assert [each.tokens for each in first] != [each.tokens for each in second]
    assert second[0].tokens == uncached(model, PROMPTS[0], 8)


def test_no_prompts_give_no_completions():
    assert Engine(tiny_model()).generate([], Sampling()) == []
