"""The largest useful model whose four stages fit a time, compute-optimal where the text allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fourstage.errors import InputError
from fourstage.model.config import ModelConfig
from fourstage.planning.facts import DataFacts, row_tokens, training_text_tokens
from fourstage.planning.hardware import Gpus
from fourstage.planning.memory import rollout_memory
from fourstage.planning.plan import USABLE, Plan, make_plan
from fourstage.planning.published import compute_optimal_params, compute_optimal_tokens
from fourstage.planning.resolve import model_config, resolve
from fourstage.planning.rules import shown, two_digits
from fourstage.planning.speed import Speed
from fourstage.recipe import Recipe, recipe_from
from fourstage.recipe.schema import Evaluation

# Share of the time that is planned with: machines slow down, and estimates err.
_PLANNED = 0.9
# Most of it that the stages after pretraining and all measuring may take before they are cut.
_REST = 0.6
_CUTS = [0.8**power for power in range(21)]
# Parameters: the least that learn anything, the first guess, and an end to all searching.
_SMALLEST, _FIRST, _LARGEST = 1e4, 1e6, 1e13
# Share of a device's memory for the keys and values of responses that are drawn.
_CACHED = 0.25
# Tokens after which the embedded world has nothing new to show.
WORLD_TOKENS = 100e6
# More passes over a text teach little (Muennighoff et al., 2023).
_MOST_EPOCHS = 4
_USUAL = Evaluation()
# Fewest of each that still say something.
_FEWEST = {"demonstrations": 500, "comparisons": 200, "episodes": 128, "measured": 50}
_FEWEST_ITERATIONS = 16

SpeedOf = Callable[[Recipe, ModelConfig], Speed]


@dataclass(frozen=True)
class Fitted:
    """What fits.

    Attributes:
        recipe: as a person would write it, what is left to the rules left out.
        notes: what the plan rests on or had to give up, a sentence each.
    """

    recipe: Recipe
    plan: Plan
    notes: list[str]


def text_for(params: float) -> str | None:
    """Where the text of a model of this size comes from when none is named: the embedded world, or
    None where the world has too little to tell."""
    return "world" if compute_optimal_tokens(params) <= WORLD_TOKENS else None


def sharded(recipe: Recipe, facts: DataFacts, gpus: Gpus) -> DataFacts:
    """The facts of a cluster: each device holds the whole model where it fits, else its share."""
    memory = gpus.accelerator.memory
    alone = replace(facts, device="cuda", memory_bytes=memory, devices=1)
    resolved, _ = resolve(recipe, alone)
    config = model_config(resolved, facts.vocab_size)
    # Policy and critic with gradients, moments and a bf16 copy, and two frozen models beside them.
    whole = config.parameters() * (2 * 18 + 2 * 4)
    # A quarter is left for activations.
    return alone if whole <= 0.75 * USABLE * memory else replace(alone, devices=gpus.count)


def fit(
    seconds: float,
    base: Recipe,
    facts: DataFacts,
    speed_of: SpeedOf,
    gpus: Gpus | None = None,
) -> Fitted:
    """The largest model that all four stages of `base` can train in `seconds`, with its tokens.

    What `base` sets stays. The model is compute-optimal (Chinchilla) for the time that is left for
    pretraining; where the last three stages would take most of the time, their data, rollouts and
    all measuring are cut by one factor.

    Args:
        speed_of: the speed of a resolved recipe's shape on this machine.

    Raises:
        InputError: no model fits.
    """
    search = _Search(_PLANNED * seconds, base, facts, gpus)
    params = float(base.model.params or _FIRST)
    search.learn(speed_of, params)
    if base.model.params or (base.model.layers and base.model.width):
        return search.filled(params)
    for _ in range(3):
        before, params = params, search.largest()
        if abs(math.log(params / before)) < 0.1:
            break
        search.learn(speed_of, params)
    return search.filled(min(params, search.largest()))


@dataclass
class _Search:
    """Candidates of one time, compared at the speed that was measured last."""

    target: float
    base: Recipe
    facts: DataFacts
    gpus: Gpus | None
    speed: Speed = field(init=False)
    config: ModelConfig = field(init=False)

    def learn(self, speed_of: SpeedOf, params: float) -> None:
        """Measures at a size; where no text is named, the first speed decides what it is."""
        first = not hasattr(self, "speed")
        resolved, self.config, _ = self._resolved(self.recipe(params))
        self.speed = speed_of(resolved, self.config)
        if first and self.base.data.pretrain is None:
            flops = 0.5 * self.target * self.speed.training
            text = text_for(self.base.model.params or compute_optimal_params(flops))
            values = written(self.base)
            if text:
                _open(values, "data", "pretrain", text)
            self.base = recipe_from(values)

    def _resolved(self, recipe: Recipe) -> tuple[Recipe, ModelConfig, DataFacts]:
        facts = sharded(recipe, self.facts, self.gpus) if self.gpus else self.facts
        resolved, _ = resolve(recipe, facts)
        return resolved, model_config(resolved, facts.vocab_size), facts

    def plan(self, recipe: Recipe) -> Plan:
        _, config, facts = self._resolved(recipe)
        return make_plan(recipe, facts, self.speed.scaled(self.config, config))

    def largest(self) -> float:
        """The largest number of parameters whose compute-optimal run fits, to two digits."""
        low = _SMALLEST
        least = self.best_cut(low)
        if least.seconds > self.target:
            seconds = two_digits(least.seconds / _PLANNED)
            raise InputError(
                f"{_clock(self.target / _PLANNED)} are too short for all four stages: the smallest "
                f"model takes about {_clock(seconds)} on {self.speed.device}; write a longer time"
            )
        while low < _LARGEST and self.holds(2 * low):
            low *= 2
        high = 2 * low
        while high / low > 1.03:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.holds(middle) else (low, middle)
        return _down(low)

    def holds(self, params: float) -> bool:
        """Whether a size fits the time and the memory, on as many tokens as it asks for."""
        plan = self.best_cut(params)
        optimal = compute_optimal_tokens(plan.config.parameters())
        enough = self.base.pretrain.tokens or optimal <= self.most_tokens(plan)
        return plan.seconds <= self.target and plan.fits and bool(enough)

    def most_tokens(self, plan: Plan) -> float:
        """Tokens that the text can teach."""
        if plan.recipe.data.pretrain == "world":
            return WORLD_TOKENS
        available = training_text_tokens(plan.recipe, self.facts, plan.config.vocab_size)
        return math.inf if available is None else _MOST_EPOCHS * available

    def best_cut(self, params: float) -> Plan:
        """The plan of a size with the last three stages cut as little as need be."""
        return self.plan(self.recipe(params, self.cut(params)))

    def cut(self, params: float) -> float:
        """The factor on the last three stages and on measuring; 1 where they leave enough time."""
        if self._leaves_enough(params, 1.0):
            return 1.0
        low, high = 1, len(_CUTS) - 1
        while low < high:
            middle = (low + high) // 2
            enough = self._leaves_enough(params, _CUTS[middle])
            low, high = (low, middle) if enough else (middle + 1, high)
        return _CUTS[low]

    def _leaves_enough(self, params: float, cut: float) -> bool:
        plan = self.plan(self.recipe(params, cut))
        pretraining = plan.stages["pretrain"]
        rest = plan.seconds - pretraining.training - pretraining.preparing
        return rest <= _REST * self.target

    def recipe(self, params: float, cut: float = 1.0, tokens: float | None = None) -> Recipe:
        """The recipe of a size; the fields that `base` sets stay as they are."""
        values = written(self.base)
        if not (self.base.model.layers and self.base.model.width):
            _open(values, "model", "params", int(params))
        if tokens is not None:
            _open(values, "pretrain", "tokens", int(_down(tokens)))
        if cut < 1:
            _cut(values, resolve(recipe_from(values), self.facts)[0], cut)
        if self.gpus:
            self._draw_fewer(values)
        return recipe_from(values)

    def _draw_fewer(self, values: dict[str, Any]) -> None:
        """Rollouts whose keys and values fit beside the models, where fewer than usual do."""
        usual, config, facts = self._resolved(recipe_from(values))
        longest = row_tokens(usual).prompt + (usual.rl.max_new_tokens or 0)
        one = rollout_memory(config, 1, int(longest), device=facts.device)
        fitting = _CACHED * (facts.memory_bytes or 0) / one
        if fitting < (usual.rl.rollout_batch or 0):
            group = usual.rl.group or 1
            batch = 2 ** int(math.log2(max(1.0, fitting))) // group * group
            _open(values, "rl", "rollout_batch", batch or group)

    def filled(self, params: float) -> Fitted:
        """The plan of a size, with pretraining over the time that is left.

        Raises:
            InputError: the size was given, and its first steps already take too long.
        """
        cut = self.cut(params)
        plan = self.plan(self.recipe(params, cut))
        notes = self._notes(plan, cut)
        if self.base.pretrain.tokens:
            recipe = self.recipe(params, cut)
        else:
            tokens, limited = self._tokens(params, cut, plan)
            notes += limited
            recipe = self.recipe(params, cut, tokens)
            plan = self.plan(recipe)
        late = plan.seconds > self.target / _PLANNED
        if late or not plan.fits:
            what = "time" if late else "memory"
            raise InputError(
                f"{plan.config.parameters():,} parameters do not fit: they take "
                f"{_clock(plan.seconds)} and {plan.memory_bytes / 1e9:.3g} GB on "
                f"{self.speed.device}; write more {what} or a smaller model"
            )
        return Fitted(recipe, plan, notes)

    def _tokens(self, params: float, cut: float, plan: Plan) -> tuple[float, list[str]]:
        """Tokens that take the time that is left, at most what the text can teach."""
        usual = float(plan.stages["pretrain"].tokens)
        half = self.plan(self.recipe(params, cut, usual / 2))
        a_token = (plan.seconds - half.seconds) / (usual - half.stages["pretrain"].tokens)
        most = self.most_tokens(plan)
        batch = plan.recipe.pretrain.batch_tokens or 1
        tokens = usual + (self.target - plan.seconds) / a_token - batch
        if tokens > most:
            return most, [f"The text is used up at {shown(int(two_digits(most)))} tokens."]
        return max(tokens, 100.0 * batch), []

    def _notes(self, plan: Plan, cut: float) -> list[str]:
        notes = []
        if plan.recipe.data.pretrain is None:
            notes.append(
                "A text of your own is needed: the embedded world has little to tell a model of "
                "this size. Name it with data.pretrain=FOLDER."
            )
        if cut < 1:
            notes.append(
                f"The last three stages and all measuring are cut to {cut:.0%} of their usual "
                "amount, so that pretraining keeps its share of the time."
            )
        return notes


def written(recipe: Recipe) -> dict[str, Any]:
    """What was set in a recipe, as a file would hold it."""
    return recipe.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)


def _open(values: dict[str, Any], section: str, key: str, value: Any) -> None:
    """Sets a field that is open."""
    values.setdefault(section, {}).setdefault(key, value)


def _cut(values: dict[str, Any], usual: Recipe, cut: float) -> None:
    """Cuts the data and rollouts of the last three stages and what is measured by one factor."""

    def less(amount: float, fewest: str) -> int:
        return int(min(amount, max(_FEWEST[fewest], two_digits(cut * amount))))

    data = usual.data
    if data.origin("sft") != "files" and data.demonstrations:
        _open(values, "data", "demonstrations", less(data.demonstrations, "demonstrations"))
    elif usual.sft.tokens:
        _open(values, "sft", "tokens", int(two_digits(cut * usual.sft.tokens)) or 1)
    if data.origin("preferences") != "files" and data.comparisons:
        _open(values, "data", "comparisons", less(data.comparisons, "comparisons"))
    elif usual.reward.steps:
        _open(values, "reward", "steps", max(10, int(cut * usual.reward.steps)))
    episodes = less(usual.rl.episodes or 0, "episodes")
    _open(values, "rl", "episodes", episodes)
    if usual.rl.rollout_batch and usual.rl.group:
        most = max(16, 2 ** int(math.log2(max(1, episodes / _FEWEST_ITERATIONS))))
        batch = min(usual.rl.rollout_batch, most) // usual.rl.group * usual.rl.group
        _open(values, "rl", "rollout_batch", batch or usual.rl.group)
    if data.rl_prompts:
        _open(values, "data", "rl_prompts", min(data.rl_prompts, max(episodes, 64)))
    for name in Evaluation.model_fields:
        _open(values, "evaluation", name, less(getattr(_USUAL, name), "measured"))
    if data.pretrain == "world":
        documents = values["evaluation"]["documents"]
        _open(values, "world", "validation_documents", min(2000, documents))


def _down(value: float) -> float:
    """The value cut to two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return value // unit * unit


def _clock(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
