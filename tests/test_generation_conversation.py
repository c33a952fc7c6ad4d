"""What a conversation and the view of its distributions promise."""

from __future__ import annotations

import pytest
import torch

from fourstage.errors import InputError
from fourstage.generation.conversation import Conversation, text_pieces
from fourstage.generation.engine import Engine
from fourstage.generation.explore import explore
from fourstage.generation.sampling import Sampling
from tiny_models import Letters, logits_of, tiny_model


def conversation(**changes) -> Conversation:
    sampling = Sampling(max_new_tokens=8, stop_ids=(1, 2))
    return Conversation(Engine(tiny_model(**changes)), Letters(), sampling)


def test_a_reply_is_what_the_engine_draws_after_all_that_was_said():
    talk = conversation(context=200)
    for turn, said in enumerate(["hello", "how are you?"]):
        before = [*talk.messages, {"role": "user", "content": said}]
        reply = "".join(talk.reply(said))
        sampling = Sampling(max_new_tokens=8, stop_ids=(1, 2), seed=turn)
        prompt = Letters().chat_prompt(before)
        expected = Engine(talk.engine.model).generate([prompt], sampling)[0]
        assert reply == Letters().decode(expected.tokens)
        assert talk.messages == [*before, {"role": "assistant", "content": reply}]


def test_the_oldest_turns_are_dropped_when_the_context_is_full():
    talk = conversation(context=48)
    for _ in range(6):
        list(talk.reply("tell me more"))
        assert len(Letters().chat_prompt(talk.messages)) <= 48 + 2
    assert talk.dropped and talk.messages[0]["role"] == "user"


def test_a_message_longer_than_the_context_is_refused_and_forgotten():
    talk = conversation(context=48)
    list(talk.reply("hello"))
    before = list(talk.messages)
    with pytest.raises(InputError, match="context holds 48"):
        list(talk.reply("a" * 60))
    assert talk.messages == before


def test_reset_forgets():
    talk = conversation(context=200)
    first = "".join(talk.reply("hello"))
    talk.reset()
    assert first is not None and talk.messages == []


def test_a_character_of_several_tokens_is_streamed_whole():
    pieces = {1: b"a", 2: "é".encode()[:1], 3: "é".encode()[1:], 4: b""}

    def decode(ids: list[int]) -> str:
        return b"".join(pieces[token] for token in ids).decode("utf-8", "replace")

    assert list(text_pieces(iter([1, 2, 3, 4, 1]), decode)) == ["a", "é", "a"]
    assert list(text_pieces(iter([1, 2]), decode)) == ["a", "\N{REPLACEMENT CHARACTER}"]


def test_exploring_shows_the_distribution_of_a_plain_forward_pass():
    model, prompt = tiny_model(), [5, 6, 7]
    sampling = Sampling(temperature=1.5, top_k=3, max_new_tokens=6, seed=4)
    positions, greedy = explore(Engine(model), prompt, sampling, top=5)
    drawn = [position.drawn.token for position in positions]
    assert drawn == Engine(model).generate([prompt], sampling)[0].tokens
    expected = Engine(model).generate([prompt], Sampling(temperature=0, max_new_tokens=6))[0]
    assert greedy == expected.tokens
    for place, position in enumerate(positions):
        row = (logits_of(model, [*prompt, *drawn[:place]])[-1] / 1.5).softmax(-1)
        order = row.argsort(descending=True).tolist()
        assert position.index == 3 + place
        assert [each.token for each in position.top] == order[:5]
        assert [each.allowed for each in position.top] == [True] * 3 + [False] * 2
        assert position.rank == order.index(position.drawn.token) + 1
        assert position.drawn.probability == pytest.approx(float(row[drawn[place]]), abs=1e-5)
        entropy = -(row * row.log2()).sum()
        assert position.entropy == pytest.approx(float(entropy), abs=1e-4)
        assert torch.isfinite(entropy)
