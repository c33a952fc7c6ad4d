"""Responses, rewards and KL: what is generated is what is judged, and against what."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from evaluation_support import model, tokenizer
from fourstage.data.batch import Batch, Example
from fourstage.evaluation.alignment import (
    gold_ceiling,
    gold_rewards,
    kl_per_response,
    reward_rows,
)
from fourstage.evaluation.responses import Chat, Response, with_response
from fourstage.evaluation.success import few_shot_success, judged, task_success
from fourstage.worlds import calibration as world
from fourstage.worlds.answers import write_answer

TASKS = [world.instruction(0, "validation", index) for index in range(24)]


def right(task) -> str:
    return write_answer(task.kind, task.facts, "full", random.Random(0))


def response(task, text: str) -> Response:
    tok = tokenizer()
    ids = (*tok.encode(text), tok.end_of_turn)
    return Response(tuple(tok.chat_prompt(task.prompt)), ids, text, True)


def test_right_answers_are_counted_by_kind():
    answers = [response(task, right(task) if i % 2 else "No.") for i, task in enumerate(TASKS)]
    metrics = judged("task_success", TASKS, answers).metrics
    assert metrics["task_success"] == 0.5
    for kind in {task.kind for task in TASKS}:
        assert f"task_success/{kind}" in metrics


def test_an_untrained_model_does_nothing_right():
    chat = Chat(model(), tokenizer(), 16)
    assert task_success(chat, TASKS).metrics["task_success"] == 0.0
    examples = [world.demonstration(0, index) for index in range(50)]
    metrics = few_shot_success(chat, TASKS, examples).metrics
    assert metrics["base_few_shot_task_success"] == 0.0


def test_few_shot_prompts_hold_three_examples_and_fit_the_context(monkeypatch):
    chat = Chat(model(context=300), tokenizer(), 16)
    examples = [world.demonstration(0, index) for index in range(200)]
    seen = []

    def keep(self, rows, temperature, purpose, stop_ids):
        seen.extend(rows)
        return [Response(tuple(row), (), "", False) for row in rows]

    monkeypatch.setattr(Chat, "continued", keep)
    few_shot_success(chat, TASKS, examples)
    for task, row in zip(TASKS, seen, strict=True):
        text = tokenizer().decode(row)
        assert text.endswith(f"\n\n{task.prompt}\n")
        assert text.count("\n\n") == 3
        assert len(row) + 16 <= 300


def test_greedy_responses_do_not_depend_on_the_batch():
    chat = Chat(model(), tokenizer(), 12)
    prompts = [task.prompt for task in TASKS]
    together = [each.tokens for each in chat.respond(prompts)]
    alone = [chat.respond([prompt])[0].tokens for prompt in prompts]
    assert together == alone


def test_the_scored_row_is_the_tokenizers_own():
    task, tok = TASKS[0], tokenizer()
    row = reward_rows(tok, [response(task, "I have a red drum.")])[0]
    assert row == tok.reward_row(with_response(task.prompt, "I have a red drum."))
    cut = Response(
        tuple(tok.chat_prompt(task.prompt)), tuple(tok.encode("I have")), "I have", False
    )
    assert reward_rows(tok, [cut])[0] == tok.reward_row(with_response(task.prompt, "I have"))


def test_kl_of_a_model_to_itself_is_zero():
    chat = Chat(model(), tokenizer(), 12)
    drawn = chat.respond([task.prompt for task in TASKS], 1.0)
    assert np.abs(kl_per_response(chat.model, chat.model, drawn)).max() == 0.0


def test_kl_is_the_summed_log_ratio_of_the_response():
    policy, reference = model(1), model(2)
    drawn = Chat(policy, tokenizer(), 12).respond([task.prompt for task in TASKS[:5]], 1.0)
    found = kl_per_response(policy, reference, drawn)
    for value, each in zip(found, drawn, strict=True):
        tokens = [*each.prompt, *each.tokens]
        sums = []
        for transformer in (policy, reference):
            batch = Batch.language([Example(np.array(tokens))])
            with torch.no_grad():
                logits = transformer.logits(transformer(batch.tokens, batch.layout))
            picked = logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
            sums.append(float(picked[len(each.prompt) - 1 :].sum()))
        assert value == pytest.approx(sums[0] - sums[1], abs=1e-4)


def test_the_mean_kl_is_near_the_exact_one_of_one_token():
    policy, reference = model(1), model(2)
    prompt = TASKS[0].prompt
    chat = Chat(policy, tokenizer(), 1)
    drawn = chat.respond([prompt] * 4000, 1.0)
    batch = Batch.language([Example(np.array([*drawn[0].prompt, 0]))])
    with torch.no_grad():
        p, q = (
            m.logits(m(batch.tokens, batch.layout))[-1].log_softmax(-1) for m in (policy, reference)
        )
    exact = float((p.exp() * (p - q)).sum())
    assert kl_per_response(policy, reference, drawn).mean() == pytest.approx(exact, rel=0.1)


def test_the_best_response_reaches_the_ceiling():
    answers = [response(task, f"Of course. {right(task)} Take care.") for task in TASKS]
    best = gold_ceiling(TASKS).metrics["gold_reward_ceiling"]
    assert gold_rewards("gold", TASKS, answers).metrics["gold"] == pytest.approx(best)
