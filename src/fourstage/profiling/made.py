"""What a stage trains on, made up: batches of a recipe's sizes, and models of its shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fourstage.adapters.adapting import base_of, narrow
from fourstage.data.batch import Batch, Example
from fourstage.data.sources import DocumentSource, ExampleSource, PairSource
from fourstage.data.store import Store, write_store
from fourstage.errors import InputError
from fourstage.evaluation.likelihood import Opinion, Turn
from fourstage.evaluation.responses import Response
from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Sampling
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.objectives.bradley_terry import BradleyTerry
from fourstage.objectives.next_token import NextToken
from fourstage.objectives.objective import Objective
from fourstage.parallel.group import Group
from fourstage.planning.facts import row_tokens
from fourstage.profiling.stopwatch import Stopwatch
from fourstage.randomness import numpy_generator
from fourstage.recipe import RL, Recipe
from fourstage.recipe.preference import learns_otherwise
from fourstage.rewards.total import Judged
from fourstage.stages.drawing import Drawer
from fourstage.stages.episodes import Players
from fourstage.stages.judges import Offsets, WithOffsets
from fourstage.stages.judging import Judge
from fourstage.stages.models import frozen
from fourstage.stages.policy import objective_of
from fourstage.stages.rollouts import RolloutSource
from fourstage.tasks import Task
from fourstage.training.contracts import Source

# Batches of rows that are made up; later ones read the same rows in another order.
_BATCHES = 4
_MOST_CELLS = 2_000_000
# Tokens that stand for the beginning and the end of an answer.
_OPENING, _END = 0, 1


@dataclass
class Made:
    """What a trainer is given.

    Attributes:
        frozen: models that are only read, in memory of their own.
        group: steps after which costs of a step repeat.
        settings: what the stage tells the trainer beside its section.
    """

    module: nn.Module
    objective: Objective
    source: Source
    frozen: Sequence[nn.Module] = ()
    group: int = 1
    settings: dict[str, Any] = field(default_factory=dict)


def made(
    stage: str,
    recipe: Recipe,
    config: ModelConfig,
    device: torch.device,
    folder: Path,
    watch: Stopwatch,
) -> Made:
    """Models, objective and source of a stage.

    Args:
        recipe: resolved.
        folder: gets the made-up rows.
        watch: times what a source of rollouts does.
    """
    # Resolved: none of its numbers is open.
    section: Any = recipe.stage(stage)
    rows, seed = row_tokens(recipe), recipe.seed
    model = Transformer(config).initialise(seed).to(device)
    if stage == "rl":
        return _rl(recipe, model, watch)
    if stage == "reward":
        model = model.with_scalar_head(seed)
    narrow([model], section, seed)
    if stage == "reward":
        pairs = section.pairs_per_step
        examples = _pairs(config, rows.compared, _BATCHES * pairs)
        store = write_store(folder / "rows", examples, vocab_size=config.vocab_size)
        objective, source = BradleyTerry(section.centring), PairSource(store, pairs, seed)
        if not section.likelihood:
            return Made(model, objective, source)
        language = frozen(Transformer(config).initialise(seed).to(device))
        offsets = Offsets(language, Turn(_OPENING, 1, _END), Opinion(1.0, -8.0, -5.0), Group())
        return Made(model, objective, WithOffsets(source, offsets), [language])
    cells = min(_MOST_CELLS, _BATCHES * section.batch_tokens)
    if stage == "sft":
        share = rows.response / (rows.prompt + rows.response)
        store = _store(folder, config, rows.demonstration, cells, trained=share)
        return Made(model, NextToken(), ExampleSource(store, section.batch_tokens, seed))
    store = _store(folder, config, rows.document, cells)
    source = DocumentSource(store, section.batch_tokens, seed, config.context, recipe.data.overlap)
    return Made(model, NextToken(), source)


def _store(
    folder: Path, config: ModelConfig, length: float, cells: int, trained: float = 1.0
) -> Store:
    examples = list(_rows(config, length, cells, trained))
    vocab_size = config.vocab_size
    return write_store(folder / "rows", examples, vocab_size=vocab_size, masked=trained < 1)


def _rows(
    config: ModelConfig, length: float, cells: int, trained: float = 1.0
) -> Iterator[Example]:
    """Random rows of about `cells` cells, their lengths spread around `length`.

    The last `trained` share of each row is what is trained.
    """
    random = numpy_generator(0, "bench", "rows")
    while cells > 0:
        size = _length(random, length, config.context + 1)
        mask = np.arange(size) >= min(size - 1, round(size * (1 - trained)))
        yield Example(random.integers(config.vocab_size, size=size), mask)
        cells -= size - 1


def _pairs(config: ModelConfig, length: float, pairs: int) -> Iterator[Example]:
    """Rows of which the second half is an answer."""
    random = numpy_generator(0, "bench", "pairs")
    for _ in range(2 * pairs):
        size = _length(random, length, config.context)
        tokens = random.integers(_END + 1, config.vocab_size, size=size)
        tokens[size // 2], tokens[-1] = _OPENING, _END
        yield Example(tokens)


def _length(random: np.random.Generator, mean: float, most: int) -> int:
    return int(np.clip(round(mean * random.uniform(0.5, 1.5)), 2, most))


def _rl(recipe: Recipe, policy: Transformer, watch: Stopwatch) -> Made:
    section = recipe.rl
    if learns_otherwise(section):
        raise InputError(
            f"rl.algorithm={section.algorithm} is not timed: its updates are those of sft; write "
            "--stage sft, or rl.algorithm=grpo"
        )
    critic = policy.with_scalar_head(recipe.seed) if section.needs_critic else None
    scorer = frozen(policy.with_scalar_head(recipe.seed)) if section.needs_reward_model else None
    narrow([policy, *([critic] if critic else [])], section, recipe.seed)
    is_shared = section.adapter is not None
    reference = None
    if section.needs_reference and is_shared:
        reference = frozen(base_of(policy))
    elif section.needs_reference:
        fresh = Transformer(policy.config).initialise(recipe.seed)
        reference = frozen(fresh.to(policy.cos.device))
    players = Players(ActorCritic(policy, critic), reference, scorer)
    source = MadeRollouts(players, recipe, watch)
    factor = (section.critic_learning_rate or 1.0) / (section.learning_rate or 1.0)
    read_only = [scorer, None if is_shared else reference]
    return Made(
        players.trained,
        objective_of(section),
        source,
        tuple(model for model in read_only if model is not None),
        source.updates,
        {"rate_multipliers": {"critic.": factor} if critic else {}},
    )


class _NoWords:
    """What rollouts ask of a tokenizer, where no token is a word."""

    stop_ids = ()
    end_of_turn = reward = 0

    def chat_prompt(self, prompt: Any) -> list[int]:
        return []

    def reward_row(self, messages: Any) -> list[int]:
        return [0, 0, 0]

    def decode(self, tokens: Sequence[int]) -> str:
        return ""


class MadeRollouts(RolloutSource):
    """Rollouts as they are, but for prompts, lengths and rewards, which are made up."""

    def __init__(self, players: Players, recipe: Recipe, watch: Stopwatch):
        section: RL = recipe.rl
        prompts = max(1, (section.rollout_batch or 1) // (section.group or 1))
        tokenizer: Any = _NoWords()
        tasks = [Task("", "made up")] * prompts
        judge = _MadeJudge(section, tokenizer, players.reward_model)
        super().__init__(players, tokenizer, tasks, section, recipe.seed, judge=judge)
        self.drawer = _MadeDrawer(players.trained.policy, recipe, prompts, watch)
        self.watch = watch

    def roll(self, iteration: int) -> Batch:
        with self.watch.section("scoring"):
            return super().roll(iteration)


class _MadeJudge(Judge):
    """A reward model's score, where one is asked; other rewards are not what is measured."""

    def __call__(self, tasks: Sequence[Task], responses: Sequence[Response]) -> Judged:
        if self.reward_model is None:
            return Judged([float(index % 2) for index in range(len(responses))], {})
        return Judged(self.learned(responses).scores.tolist(), {})

    def ended(self, response: Response) -> bool:
        return True


class _MadeDrawer(Drawer):
    """Lengths of responses are spread as a policy's are: most are short, and the longest keep the
    batch waiting."""

    def __init__(self, policy: Transformer, recipe: Recipe, prompts: int, watch: Stopwatch):
        tokenizer: Any = _NoWords()
        tasks = [Task("", "made up")] * prompts
        section: RL = recipe.rl.model_copy(update={"dynamic_sampling": False})
        super().__init__(policy, tokenizer, tasks, section, recipe.seed, Group(), print)
        rows, config = row_tokens(recipe), policy.config
        random = numpy_generator(0, "bench", "prompts")
        room = config.context - 2 - (section.max_new_tokens or 1)
        size = max(1, min(round(rows.prompt), room))
        self.prompts = random.integers(config.vocab_size, size=(prompts, size)).tolist()
        self.response_tokens, self.watch = rows.response, watch

    def respond(self, chosen: Sequence[int], iteration: int, first: int = 0) -> list[Response]:
        random = numpy_generator(self.seed, "bench", "lengths", iteration)
        most = self.section.max_new_tokens
        lengths = random.geometric(min(1.0, 1 / self.response_tokens), len(chosen)).clip(1, most)
        asked = [Sampling(max_new_tokens=int(length)) for length in lengths]
        prompts = [self.prompts[i] for i in chosen]
        engine = Engine(self.policy, max_batch=self.section.rollout_batch)
        with self.watch.section("rollout"):
            done = engine.generate(prompts, asked, list(range(len(chosen))))
        return [
            Response(tuple(prompt), tuple(each.tokens), "", True, each.logprobs)
            for prompt, each in zip(prompts, done, strict=True)
        ]
