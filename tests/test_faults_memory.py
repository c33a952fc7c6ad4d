"""Where rollouts and measurements do not fit the memory they go on in smaller parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from evaluation_support import model
from fourstage.data.batch import Batch, Example
from fourstage.errors import MachineError
from fourstage.evaluation.scoring import greedy_hits, raw_scores, trained_logprobs
from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Sampling
from fourstage.memory import in_halves
from fourstage.model.cache import KVCache
from fourstage.model.transformer import Transformer
from fourstage.objectives.ppo import PPO
from fourstage.training.trainer import Trainer
from parallel_cases import ended
from test_stages_rollouts import source
from training_support import same_bits, settings, weights_of

PROMPTS = [[(7 * i + j) % 60 + 1 for j in range(3 + i % 9)] for i in range(21)]
SAMPLING = Sampling(temperature=0.9, max_new_tokens=12, stop_ids=(5, 6))


@pytest.fixture
def room(monkeypatch) -> Callable[[int], list[int]]:
    """Room for so many rows at a time; the rows that were asked for are gathered."""

    def of(most: int) -> list[int]:
        asked: list[int] = []
        made = KVCache.__init__

        def cramped(self: KVCache, config: Any, rows: int, *more: Any, **others: Any) -> None:
            asked.append(rows)
            if rows > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            made(self, config, rows, *more, **others)

        monkeypatch.setattr(KVCache, "__init__", cramped)
        return asked

    return of


def test_requests_that_do_not_fit_the_memory_are_answered_the_same_in_smaller_batches(room):
    language, seeds = model(1), list(range(21))
    expected = Engine(language).generate(PROMPTS, SAMPLING, seeds)
    asked = room(6)
    engine = Engine(language)
    found = engine.generate(PROMPTS, SAMPLING, seeds)
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    assert [each.finish for each in found] == [each.finish for each in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    # 21 equal prompts among them are read once; a batch holds a row for each all the same.
    assert asked[0] == 21 and max(asked[-5:]) == engine.max_batch <= 6
    asked.clear()
    engine.generate(PROMPTS, SAMPLING, seeds)
    assert max(asked) == engine.max_batch, "what fitted is remembered"


def test_what_is_done_before_memory_runs_out_is_kept(monkeypatch):
    """The fifth token of the second batch finds no memory, once."""
    language = model(1)
    expected = Engine(language, 7).generate(PROMPTS, SAMPLING)
    decode, steps = Transformer.decode, []

    def cramped(self: Transformer, tokens: Any, cache: KVCache) -> Any:
        steps.append(len(tokens))
        if len(steps) == 16:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return decode(self, tokens, cache)

    monkeypatch.setattr(Transformer, "decode", cramped)
    engine = Engine(language, 7)
    found = engine.generate(PROMPTS, SAMPLING)
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    assert engine.max_batch == 3


def test_a_single_request_that_does_not_fit_is_told_with_its_lengths(room):
    room(0)
    with pytest.raises(MachineError, match=r"of 3 tokens with up to 12 new ones .*max_new_tokens"):
        Engine(model(1)).generate(PROMPTS[:4], SAMPLING)


def test_an_error_that_is_no_lack_of_memory_is_not_hidden(monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Transformer, "decode", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        Engine(model(1)).generate(PROMPTS, SAMPLING)


def test_rollouts_go_on_with_what_fitted_say_so_and_train_on_the_same(room):
    said: list[str] = []
    whole, cramped = source(), source()
    expected = whole.batch(0)
    cramped.drawer.say = said.append
    asked = room(6)
    found = cramped.batch(0)
    assert torch.equal(found.tokens, expected.tokens) and found.lengths == expected.lengths
    torch.testing.assert_close(
        found.streams["advantages"], expected.streams["advantages"], atol=1e-4, rtol=1e-4
    )
    assert said == ["rl: out of memory in the rollouts; from here on 4 at a time"]
    asked.clear()
    cramped.batch(4)
    assert max(asked) == 4 and len(said) == 1
    again = source()
    again.restore(cramped.state())
    assert again.drawer.rows == 4
    older = cramped.state()
    del older["rows"]
    source().restore(older)


def test_a_killed_run_whose_rollouts_did_not_fit_goes_on_with_the_same_bits(tmp_path, room):
    def train(name: str, steps: int) -> dict:
        made = source()
        made.drawer.say = lambda line: None
        told = settings(steps=steps, learning_rate=1e-3, checkpoint_every=3, tune=False)
        Trainer(
            made.players.trained, PPO(), made, told, tmp_path / name, say=lambda line: None
        ).train()
        return weights_of(made.players.trained)

    room(6)
    straight = train("a", 9)
    train("b", 3)
    assert same_bits(train("b", 9), straight)


def test_a_portion_that_does_not_fit_is_worked_on_in_halves_in_order():
    done: list[list[int]] = []

    def work(portion: list[int]) -> None:
        if len(portion) > 3:
            raise MemoryError
        done.append(portion)

    in_halves([list(range(10)), [10, 11]], work)
    assert [each for portion in done for each in portion] == list(range(12))
    with pytest.raises(MemoryError):
        in_halves([[1]], lambda portion: (_ for _ in ()).throw(MemoryError))


def test_measurements_that_do_not_fit_the_memory_come_out_the_same(monkeypatch):
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 60, n) for n in (9, 17, 4, 30, 12, 25)]
    batch = Batch.language([Example(row) for row in rows])
    language, scorer = model(1), model(3, head="scalar")

    def measured() -> list[torch.Tensor]:
        return [
            trained_logprobs(language, batch),
            greedy_hits(language, batch)[0],
            torch.from_numpy(raw_scores(scorer, rows)),
        ]

    expected, forward, refused = measured(), Transformer.forward, []

    def cramped(self: Transformer, tokens: Any, *more: Any, **others: Any) -> Any:
        if len(tokens) > 40:
            refused.append(len(tokens))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, tokens, *more, **others)

    monkeypatch.setattr(Transformer, "forward", cramped)
    for one, other in zip(measured(), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert len(refused) >= 3


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nmore"), MemoryError()]
)
def test_memory_that_runs_out_anywhere_else_is_one_line(error):
    def work() -> None:
        raise error

    code, told = ended(work)
    assert code == 1 and told.startswith("error: out of memory (") and told.count("\n") == 1


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_machine():
    def work() -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        ended(work)
