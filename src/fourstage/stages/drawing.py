"""Responses of a model to the prompts of an iteration, and their rewards, shared by processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fourstage import tasks as checkers
from fourstage.data.batch import Batch, Example
from fourstage.data.compared import with_prompts
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.responses import Response
from fourstage.evaluation.scoring import scores
from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Sampling
from fourstage.model.transformer import Transformer
from fourstage.parallel.group import Group
from fourstage.randomness import permutation, seed_for
from fourstage.recipe import RL
from fourstage.tasks import Task

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer


class Drawing:
    """Draws and scores `rollout_batch` responses an iteration, `group` to each prompt.

    Args:
        tasks: walked through in a fresh permutation each epoch.
        section: `rl` of a resolved recipe.
        reward_model: scores a response; without its end it gets `missing_end_penalty` instead.

    Attributes:
        rows: responses that are drawn at a time; falls where they do not fit the memory.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tasks: Sequence[Task],
        section: RL,
        reward_model: Transformer,
        seed: int,
        group: Group,
        say: Callable[[str], None],
    ):
        self.tokenizer = tokenizer
        self.tasks = list(tasks)
        self.prompts = [tokenizer.chat_prompt(task.prompt) for task in self.tasks]
        # Resolved: none of its numbers is open.
        self.section: Any = section
        self.reward_model = reward_model
        self.seed, self.group, self.say = seed, group, say
        self.rows: int = self.section.rollout_batch

    @property
    def longest(self) -> int:
        """Cells that no response has more of, with its prompt."""
        return max(map(len, self.prompts)) + self.section.max_new_tokens

    def chosen(self, iteration: int) -> list[int]:
        """Indices of the tasks of an iteration, each `group` times in a row."""
        count = self.section.rollout_batch // self.section.group
        found = []
        for place in range(iteration * count, (iteration + 1) * count):
            epoch, index = divmod(place, len(self.tasks))
            order = permutation(len(self.tasks), self.seed, "prompts", epoch)
            found += [int(order[index])] * self.section.group
        return found

    def respond(self, model: Transformer, chosen: Sequence[int], iteration: int) -> list[Response]:
        """A response of `model` to each of the chosen prompts, from the whole distribution."""
        section = self.section
        sampling = Sampling(
            temperature=section.temperature,
            max_new_tokens=section.max_new_tokens,
            stop_ids=self.tokenizer.stop_ids,
        )
        seeds = [seed_for(self.seed, "rollout", iteration, i) for i in range(len(chosen))]
        prompts = [self.prompts[i] for i in chosen]
        engine, share = Engine(model, max_batch=self.rows), self.group.share
        done = engine.generate(share(prompts), sampling, share(seeds))
        self._keep_rows(engine.max_batch)
        tokens = [torch.tensor(each.tokens, dtype=torch.long) for each in done]
        logprobs = [torch.from_numpy(each.logprobs) for each in done]
        tokens = self.group.collect(tokens, len(chosen), torch.long)
        logprobs = self.group.collect(logprobs, len(chosen))
        return [
            self._response(prompt, drawn.tolist(), each.numpy())
            for prompt, drawn, each in zip(prompts, tokens, logprobs, strict=True)
        ]

    def _keep_rows(self, fitted: int) -> None:
        """Goes on with what fitted the memory of every process; a run that is resumed does too."""
        fewest = int(self.group.lowest(fitted))
        if fewest < self.rows:
            self.say(f"rl: out of memory in the rollouts; from here on {fewest} at a time")
            self.rows = fewest

    def _response(self, prompt: Sequence[int], drawn: list[int], logprobs: np.ndarray) -> Response:
        stopped = bool(drawn) and drawn[-1] in self.tokenizer.stop_ids
        text = self.tokenizer.decode(drawn)
        return Response(tuple(prompt), tuple(drawn), text, stopped, logprobs)

    def ended(self, response: Response) -> bool:
        """Whether the response ended its turn; the end of a document is no end of a turn."""
        return bool(response.tokens) and response.tokens[-1] == self.tokenizer.end_of_turn

    def rewards(self, responses: Sequence[Response]) -> Tensor:
        """[responses] `(score - reward_mean) / reward_std`; without an end, the penalty instead."""
        rows = self.group.share(reward_rows(self.tokenizer, responses))
        own = torch.from_numpy(scores(self.reward_model, rows))[:, None].unbind()
        found = torch.cat(self.group.collect(own, len(responses), torch.double)).numpy()
        ended = np.array([self.ended(each) for each in responses])
        return torch.from_numpy(np.where(ended, found, self.section.missing_end_penalty)).float()

    def numbers(
        self, chosen: Sequence[int], responses: Sequence[Response], rewards: Tensor
    ) -> dict[str, float]:
        """Means over an iteration; gold is measured and written down, and nothing reads it."""
        found = {
            "reward": float(rewards.mean()),
            "length": float(np.mean([len(each.tokens) for each in responses])),
            "finished": float(np.mean([self.ended(each) for each in responses])),
        }
        pairs = [(self.tasks[i], each) for i, each in zip(chosen, responses, strict=True)]
        golds = [checkers.gold(t, each.text) for t, each in pairs if t.facts.get("checker")]
        return found | ({"gold": float(np.mean(golds))} if golds else {})


def of_each(group: Group, batch: Batch, number: Callable[[Batch], Tensor]) -> Tensor:
    """`number(batch)` [cells], of which each process works out that of its documents."""
    if group.world_size == 1:
        return number(batch)
    documents = group.share(range(len(batch.lengths)))
    part = batch.select(documents) if documents else None
    own = list(number(part).split(part.lengths)) if part else []
    return torch.cat(group.collect(own, len(batch.lengths)))


def drawn_examples(responses: Sequence[Response]) -> list[Example]:
    """Prompt and response as one row each, whose response alone is trained."""
    examples = []
    for each in responses:
        tokens = np.array([*each.prompt, *each.tokens], np.int64)
        examples.append(Example(tokens, np.arange(len(tokens)) >= len(each.prompt)))
    return examples


def drawn_batch(responses: Sequence[Response]) -> Batch:
    """As `Batch.language`, with `prompt_tokens`."""
    examples = drawn_examples(responses)
    return with_prompts(Batch.language(examples), examples)
