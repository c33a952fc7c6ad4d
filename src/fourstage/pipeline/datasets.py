"""The data of a run: prepared once, known by content, and what the rules may know of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fourstage.data import prepare
from fourstage.data.compared import pair_rows
from fourstage.data.comparing import elements_of
from fourstage.data.fromtext import Sampler
from fourstage.data.prepared import PreparedData
from fourstage.data.replay import own_tokens
from fourstage.devices import memory_of
from fourstage.files import sha256_folder
from fourstage.pipeline import raw
from fourstage.pipeline.lineage import Lineage
from fourstage.planning import DataFacts, Derived, parent_folder, parent_shape, resolve
from fourstage.randomness import seed_for
from fourstage.recipe import PARTS, STAGES, Recipe
from fourstage.recipe.preference import reads_comparisons

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

Say = Callable[[str], None]
# The number the rules may know of a stage's data.
_FACTS = {
    "pretrain": "pretrain_tokens",
    "sft": "sft_tokens",
    "reward": "comparisons",
    "rl": "preferences",
}


class Datasets:
    """Prepares the data of a recipe in its run, and resolves the recipe with what they hold.

    Args:
        hashes: part -> {file name: sha256} of the raw files.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        lineage: Lineage,
        hashes: raw.Hashes,
        device: torch.device,
        say: Say,
    ):
        self.recipe, self.run, self.lineage, self.hashes = recipe, run, lineage, hashes
        self.device, self.say = device, say
        self._known: dict[str, float] = {}
        self._tokenizer: Tokenizer | None = None

    # What the rules may know

    def facts(self) -> DataFacts:
        """What is known now: sizes of the raw text, of what is prepared, and of the machine."""
        for stage in STAGES:
            self._learn(stage)
        tokenizer = self.run / "tokenizer" / "tokenizer.json"
        return replace(
            self._first_facts,
            vocab_size=self.tokenizer().vocab_size if tokenizer.exists() else None,
            device=self.device.type,
            memory_bytes=memory_of(self.device),
            **{_FACTS[stage]: int(number) for stage, number in self._known.items()},
        )

    def _learn(self, stage: str) -> None:
        """Reads how much data `stage` has, from its store or from what run.json noted."""
        if not self._counts(stage) or stage in self._known or self._is_endless(stage):
            return
        if self._is_prepared(self._read_by(stage)):
            found = self._counted(stage)
        else:
            noted = self.lineage[stage].get("facts", {}).get(_FACTS[stage])
            found = noted if self._is_the_same(stage) else None
        if found is not None:
            self._known[stage] = found

    def _counts(self, stage: str) -> bool:
        """Whether the rules ask how much data a stage has."""
        return stage in _FACTS and (stage != "rl" or self._rl_compares)

    def _read_by(self, stage: str) -> str:
        """The stage whose prepared data this one learns from."""
        return "reward" if stage == "rl" and self._rl_compares else stage

    def _counted(self, stage: str) -> int:
        """Tokens; of a reward model the rows it learns from, of the rl stage its comparisons."""
        prepared = PreparedData(self.run)
        if stage == "reward":
            is_there = (prepared.folder / stage / "train").is_dir()
            return elements_of(prepared.store(stage, "train")) if is_there else 0
        store = prepared.training_store(self._read_by(stage))
        if stage == "rl":
            return len(pair_rows(store))
        replays = stage == "pretrain" and self.recipe.data.replay is not None
        return own_tokens(store) if replays else store.tokens_total

    @property
    def _rl_compares(self) -> bool:
        """Whether the rl stage learns from the comparisons of `data.preferences`."""
        return reads_comparisons(self.recipe.rl)

    def _is_endless(self, stage: str) -> bool:
        """Whether the recipe says how much data there is, since the world has any amount."""
        return self.recipe.data.origin(PARTS[self._read_by(stage)]) == "world"

    def _is_prepared(self, stage: str) -> bool:
        return prepare.Preparation(self._at_first, self.run, _quiet).is_current(stage)

    def _is_the_same(self, stage: str) -> bool:
        """Whether `stage` was made from these very inputs, though its data are gone."""
        return self.lineage[stage].get("inputs", {}).get("data") == self.key(stage)

    @cached_property
    def _first_facts(self) -> DataFacts:
        """What is known before anything is prepared."""
        return DataFacts(
            text_bytes=prepare.text_bytes(self.recipe), model=parent_shape(self.recipe)
        )

    @cached_property
    def _at_first(self) -> Recipe:
        """The recipe resolved with that alone: it holds all that preparation depends on."""
        return resolve(self.recipe, self._first_facts)[0]

    def resolved(self) -> tuple[Recipe, list[Derived]]:
        """The recipe with its open fields filled, and each filled value with its rule."""
        return resolve(self.recipe, self.facts())

    def noted_facts(self, stage: str) -> dict[str, float]:
        """What run.json keeps, so that a finished stage is known for itself without its data."""
        return {_FACTS[stage]: self._known[stage]} if stage in self._known else {}

    # What a stage is made from

    def key(self, stage: str) -> str:
        """Hash of all that decides the data of `stage`."""
        return raw.data_key(self._at_first, stage, self.hashes)

    def is_known(self, stage: str) -> bool:
        """Whether the recipe can be resolved for `stage` as it will be when it runs."""
        self._learn(stage)
        return not self._counts(stage) or self._is_endless(stage) or stage in self._known

    def tokenizer_hash(self) -> str:
        return sha256_folder(self.run / "tokenizer")

    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = PreparedData.open(self.run).tokenizer()
        return self._tokenizer

    # Preparing

    def prepare_tokenizer(self) -> None:
        """Trains or adopts the tokenizer, unless the run has it.

        Raises:
            InputError: data missing or unreadable, or a vocabulary too large for the text.
        """
        asked = self.recipe.tokenizer.vocab_size
        prepare.prepare_tokenizer(self._at_first, self.run, self.say, exact=asked is not None)
        self._tokenizer = None
        section, found = self.recipe.tokenizer, self.tokenizer().vocab_size
        if parent_folder(self.recipe) and not section.train and asked not in (None, found):
            self.say(
                f"tokenizer.vocab_size={asked} is not used: the vocabulary adopted has {found:,} "
                "tokens; tokenizer.train=true would train one of that size"
            )

    def can_prepare(self, stage: str) -> bool:
        """Whether `stage` needs no model for its data: comparisons made from the text do."""
        compared = stage == "reward" or (stage == "rl" and self._rl_compares)
        return not compared or self.recipe.data.origin("preferences") != "made"

    def prepare(self, stage: str, chat_model: Path | None = None) -> None:
        """Prepares the data of one stage, unless they are there.

        Args:
            chat_model: answers the instructions of comparisons that are made from the text.

        Raises:
            InputError: data missing, unreadable, malformed or too small.
        """
        if stage == "rl" and self._rl_compares:
            self.prepare("reward", chat_model)
        self._known.pop(stage, None)
        recipe = self._at_first
        if stage == "reward":
            sampler = None if self.can_prepare(stage) else self._sampler(recipe, chat_model)
            prepare.prepare_reward(recipe, self.run, self.say, sampler)
            return
        by_stage = {
            "pretrain": prepare.prepare_pretrain,
            "sft": prepare.prepare_sft,
            "rl": prepare.prepare_rl,
        }
        by_stage[stage](recipe, self.run, self.say)

    def _sampler(self, recipe: Recipe, folder: Path | None) -> Sampler | None:
        """Answers prompts with the chat model at temperature 1, loaded when first asked."""
        if folder is None:
            return None
        engines = []

        def sample(prompts: list[str]) -> list[str]:
            from fourstage.generation.engine import Engine
            from fourstage.generation.sampling import Sampling
            from fourstage.interchange import load_model

            if not engines:
                engines.append(Engine(load_model(folder, self.device).eval()))
            tokenizer = self.tokenizer()
            most = recipe.rl.max_new_tokens or 64
            sampling = Sampling(1.0, max_new_tokens=most, stop_ids=tokenizer.stop_ids)
            rows = [tokenizer.chat_prompt(prompt) for prompt in prompts]
            seeds = [seed_for(recipe.seed, "compared", prompt) for prompt in prompts]
            done = engines[0].generate(rows, sampling, seeds)
            return [tokenizer.decode(each.tokens) for each in done]

        return sample


def _quiet(line: str) -> None:
    """Says nothing: a look at what is prepared is no news."""
