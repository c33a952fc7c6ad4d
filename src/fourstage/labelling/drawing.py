"""Completions of a run's model, drawn once and kept, so that everyone labels the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourstage.errors import InputError
from fourstage.files import read_json, sha256_json, write_json
from fourstage.randomness import seed_for
from fourstage.tasks import Task

if TYPE_CHECKING:
    from fourstage.interchange.resolve import OpenModel

NAME = "completions.json"
# Completions that are empty or the same as another one are drawn again, so often.
_ROUNDS = 4


@dataclass(frozen=True)
class Drawn:
    """How the completions of a set were drawn.

    Attributes:
        stage: whose model wrote them. model: its hash.
        source: where the prompts are from: "rl", "held-out", or a file's name.
        k: completions a prompt, where there are so many that differ.
    """

    stage: str
    model: str
    source: str
    k: int
    temperature: float
    max_new_tokens: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Item:
    """A prompt and its completions, two or more that differ; the id is that of their content."""

    task: Task
    completions: tuple[str, ...]

    @property
    def id(self) -> str:
        return sha256_json([self.task.prompt, list(self.completions)])[:16]

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "task": self.task.to_json(), "completions": [*self.completions]}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Item:
        item = cls(Task.from_json(row["task"]), tuple(row["completions"]))
        if item.id != row["id"] or len(item.completions) < 2:
            raise ValueError(f"item {row['id']} is not what it was")
        return item


@dataclass
class CompletionSet:
    """What is labelled: `completions.json` in a folder of its own.

    Attributes:
        left_out: ids of prompts with fewer than two completions that differ, or that do not fit
            the model's context.
    """

    folder: Path
    drawn: Drawn
    items: list[Item] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> CompletionSet | None:
        """The set in `folder`; None where there is none yet.

        Raises:
            InputError: the file is damaged.
        """
        path = folder / NAME
        if not path.exists():
            return None
        try:
            told = read_json(path)
            items = [Item.from_json(row) for row in told["items"]]
            return cls(folder, Drawn(**told["drawn"]), items, list(told["left_out"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is damaged ({error}): restore it, or write --set NAME to begin another"
            ) from error

    def write(self) -> None:
        write_json(
            self.folder / NAME,
            {
                "drawn": self.drawn.to_json(),
                "items": [item.to_json() for item in self.items],
                "left_out": self.left_out,
            },
        )

    @property
    def tried(self) -> int:
        """Prompts that completions were drawn for."""
        return len(self.items) + len(self.left_out)

    def beyond(self, tasks: Sequence[Task], count: int) -> list[Task]:
        """The first of `tasks` that the set has not tried, up to `count` tried ones in all."""
        known = {prompt_id(item.task) for item in self.items} | set(self.left_out)
        fresh: dict[str, Task] = {}
        for task in tasks:
            if prompt_id(task) not in known:
                fresh.setdefault(prompt_id(task), task)
        return list(fresh.values())[: max(0, count - self.tried)]

    def draw(self, opened: OpenModel, tasks: Sequence[Task], say: Callable[[str], None]) -> None:
        """Draws completions of `tasks`, and keeps them with the others.

        A completion depends on the seed, its prompt and its number alone.
        """
        found = distinct_completions(opened, [task.prompt for task in tasks], self.drawn)
        left_out = 0
        for task, completions in zip(tasks, found, strict=True):
            if len(completions) < 2:
                self.left_out.append(prompt_id(task))
                left_out += 1
            else:
                self.items.append(Item(task, tuple(completions)))
        if left_out:
            say(
                f"{left_out} of {len(tasks)} prompts are left out: too long for the model, or "
                f"fewer than two completions that differ in {_ROUNDS * self.drawn.k} draws"
            )
        # A set without anything to label would only stand in the way of another draw.
        if self.items:
            self.write()


def prompt_id(task: Task) -> str:
    return sha256_json(task.prompt)[:16]


def distinct_completions(
    opened: OpenModel, prompts: Sequence[Any], drawn: Drawn
) -> list[list[str]]:
    """Up to `k` completions of each prompt that say something and differ, in the order drawn."""
    from fourstage.generation.engine import Engine
    from fourstage.generation.sampling import Sampling

    sampling = opened.stopping(
        Sampling(drawn.temperature, max_new_tokens=drawn.max_new_tokens, seed=drawn.seed)
    )
    engine, context = Engine(opened.model), opened.model.config.context
    ids = [opened.tokenizer.chat_prompt(prompt) for prompt in prompts]
    found: list[dict[str, str]] = [{} for _ in prompts]
    for turn in range(_ROUNDS):
        lacking = [
            place
            for place, row in enumerate(ids)
            if len(found[place]) < drawn.k and len(row) < context
        ]
        asked = [(place, turn * drawn.k + draw) for place in lacking for draw in range(drawn.k)]
        if not asked:
            break
        seeds = [
            seed_for(drawn.seed, "labelled", sha256_json(prompts[place]), number)
            for place, number in asked
        ]
        done = engine.generate([ids[place] for place, _ in asked], sampling, seeds)
        for (place, _), completion in zip(asked, done, strict=True):
            text = opened.tokenizer.decode(completion.tokens)
            if text.strip() and len(found[place]) < drawn.k:
                found[place].setdefault(text.strip(), text)
    return [list(texts.values()) for texts in found]
