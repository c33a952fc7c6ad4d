"""Preparation: raw data to a tokenizer, token stores and tasks, each step whole or not done.

A step is skipped when it was finished from the same inputs: its part of the recipe, the content of
its raw files and the tokenizer.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fourstage import files
from fourstage.data import fromworld
from fourstage.data.corpus import (
    Corpus,
    build_corpus,
    corpus_inputs,
    shared_with_text,
    text_size,
    told,
)
from fourstage.data.crew import workers_for
from fourstage.data.drawing import mix_of
from fourstage.data.encoding import document_rows
from fourstage.data.fitting import Fitting
from fourstage.data.fromtext import Sampler
from fourstage.data.materials import BAD, Materials, world_documents
from fourstage.data.packing import packing_report
from fourstage.data.prepared import PreparedData
from fourstage.data.replay import add_replay, replay_inputs
from fourstage.data.rewards import write_rewards
from fourstage.data.shards import write_shards
from fourstage.data.store import Store, write_store
from fourstage.data.vocabulary import make_tokenizer, tokenizer_source
from fourstage.files import write_lines
from fourstage.recipe.data import REPLAY
from fourstage.recipe.schema import PARTS, STAGES, Recipe
from fourstage.tasks import Task

Say = Callable[[str], None]
# Changes when the same inputs would give other data.
_FORMAT = 2
# Training demonstrations kept as text, for worked examples.
_EXAMPLES = 1000
_ORIGINS = {"made": "made from the text", "files": "from files", "world": "of the world"}


def prepare(
    recipe: Recipe, run: Path, say: Say = print, tokenizer_only: bool = False
) -> PreparedData:
    """Prepares all that can be prepared before training.

    Comparisons made from the text are left out: they need samples of the SFT model, which
    `prepare_reward` takes.

    Raises:
        InputError: data that are missing, unreadable, malformed or too small.
    """
    if not any(recipe.stage(stage).source_model for stage in STAGES):
        recipe.require_data()
    preparation = Preparation(recipe, Path(run), say)
    preparation.tokenizer()
    if not tokenizer_only:
        if recipe.data.pretrain:
            preparation.pretrain()
        preparation.sft()
        if recipe.data.origin("preferences") != "made":
            preparation.reward(None)
        preparation.rl()
    return PreparedData.open(run)


def prepare_tokenizer(
    recipe: Recipe, run: Path, say: Say = print, exact: bool = True
) -> PreparedData:
    """The tokenizer alone.

    With `exact`, a `tokenizer.vocab_size` too large for the text is refused; without it (where the
    size is derived) the vocabulary comes out smaller. The world's words are few: it never refuses.
    """
    Preparation(recipe, Path(run), say, exact).tokenizer()
    return PreparedData.open(run)


def prepare_pretrain(recipe: Recipe, run: Path, say: Say = print) -> PreparedData:
    """Stores of documents, and the held-out ones as text."""
    Preparation(recipe, Path(run), say).pretrain()
    return PreparedData.open(run)


def prepare_sft(recipe: Recipe, run: Path, say: Say = print) -> PreparedData:
    """Stores of demonstrations, and held-out tasks."""
    Preparation(recipe, Path(run), say).sft()
    return PreparedData.open(run)


def prepare_reward(
    recipe: Recipe, run: Path, say: Say = print, sample: Sampler | None = None
) -> PreparedData:
    """Stores of comparisons.

    Where they are made from the text, `sample` answers prompts with the SFT model: up to 64 prompts
    a call, each answer a function of its prompt alone.
    """
    Preparation(recipe, Path(run), say).reward(sample)
    return PreparedData.open(run)


def prepare_rl(recipe: Recipe, run: Path, say: Say = print) -> PreparedData:
    """Tasks to train on and held-out ones."""
    Preparation(recipe, Path(run), say).rl()
    return PreparedData.open(run)


def text_bytes(recipe: Recipe) -> int | None:
    """Bytes of the pretraining text, roughly where it is packed; None for the world and for none.

    Raises:
        InputError: a path that does not exist.
    """
    if not recipe.data.paths("pretrain"):
        return None
    return text_size(recipe.data)


class Preparation:
    """The steps of one recipe in one run."""

    def __init__(self, recipe: Recipe, run: Path, say: Say, exact: bool = True):
        self.recipe, self.run, self.say, self.exact = recipe, run, say, exact
        self.prepared = PreparedData.open(run)
        self.materials = Materials(recipe, self.prepared, self.corpus)

    def _key(self, step: str, inputs: dict[str, Any]) -> str:
        told = {"format": _FORMAT, "step": step, "seed": self.recipe.seed, "inputs": inputs}
        if step not in ("corpus", "tokenizer"):
            told["tokenizer"] = files.sha256_folder(self.run / "tokenizer")
        return files.sha256_json(told)

    def is_current(self, step: str) -> bool:
        """Whether `step` (tokenizer, or a stage) was finished from the inputs there are now."""
        if step == "tokenizer":
            source = tokenizer_source(self.recipe)
            key = self._key(step, self._tokenizer_inputs(source))
            return self.prepared.is_done(step, key) and bool(source or self._has_wanted_size())
        if not (self.run / "tokenizer" / "tokenizer.json").exists():
            return False
        inputs = self._pretrain_inputs() if step == "pretrain" else self.materials.inputs(step)
        return self.prepared.is_done(step, self._key(step, inputs))

    def tokenizer(self) -> None:
        """Trains or adopts the tokenizer, unless the run has that one.

        Instructions added later leave the vocabulary, and what was trained with it, as it is.
        """
        if self.is_current("tokenizer"):
            return
        source = tokenizer_source(self.recipe)
        key = self._key("tokenizer", self._tokenizer_inputs(source))
        texts = None if source else self.materials.counted_texts()
        exact = self.exact and self.recipe.data.pretrain != "world"
        size = text_bytes(self.recipe)
        tokenizer, report = make_tokenizer(self.recipe, source, texts, exact, self.say, size)
        self.prepared.unmark("tokenizer")
        with files.atomic_folder(self.run / "tokenizer") as aside:
            tokenizer.save(aside)
        self.prepared.finish("tokenizer", key, report, {})

    def _tokenizer_inputs(self, source: Path | None) -> dict[str, Any]:
        if source is not None:
            return {"source": files.sha256_file(source)}
        section = self.recipe.tokenizer
        rules: dict[str, Any] = {"split": section.split, "digits": section.digits}
        if self.recipe.data.pretrain:
            return rules | self.materials.text_inputs()
        return rules | {part: self.materials.own_rows(part) for part in ("sft", "preferences")}

    def _has_wanted_size(self) -> bool:
        """Whether the size asked for is that of the tokenizer, or the one it was asked to have."""
        report = self.prepared.report["tokenizer"]
        wanted = self.recipe.tokenizer.vocab_size
        return wanted in (None, report["vocab_size"], report.get("asked_for"))

    def _with_tokenizer(self) -> None:
        if not (self.run / "tokenizer" / "tokenizer.json").exists():
            self.tokenizer()

    def corpus(self) -> Corpus:
        """The text of a person's own files, read, cleaned and split, unless the run has it."""
        folder = self.prepared.folder / "corpus"
        key = self._key("corpus", corpus_inputs(self.recipe.data))
        if self.prepared.is_done("corpus", key):
            return Corpus(folder)
        self.prepared.unmark("corpus")
        corpus, report = build_corpus(self.recipe.data, folder)
        self.prepared.finish("corpus", key, report, {})
        self.say(told(report))
        return corpus

    def pretrain(self) -> None:
        """Stores of documents; those of the world are written as drawn, repeats and all."""
        self._with_tokenizer()
        inputs = self._pretrain_inputs()
        key = self._key("pretrain", inputs)
        if self.prepared.is_done("pretrain", key):
            return
        folder = self._begin_pretrain(key)
        from_world = self.recipe.data.pretrain == "world"
        train, validation, report = (self._world if from_world else self._shards)(folder)
        if self.recipe.data.replay:
            train, report[REPLAY] = add_replay(self.recipe.data, self.prepared, train)
        if not (from_world or self.recipe.data.mixture.is_natural):
            # Weights of what has no text left are refused before anything is trained.
            mix_of(self.recipe, train)
        report |= {
            "train": len(train),
            "validation": len(validation),
            "train_tokens": train.tokens_total,
            "validation_tokens": validation.tokens_total,
        }
        raw = {"pretrain": inputs["raw"]} if "raw" in inputs else {}
        self.prepared.finish("pretrain", key, report, raw)
        self.say(
            f"data for pretrain: {len(train):,} documents, {train.tokens_total:,} tokens; "
            f"{len(validation):,} held out, {report['validation_seen_in_training']:.1%} of them "
            "occur in training"
        )

    def _pretrain_inputs(self) -> dict[str, Any]:
        earlier = replay_inputs(self.recipe.data)
        return self.materials.text_inputs() | ({"replay": earlier} if earlier else {})

    def begin_pretrain(self) -> None:
        """Makes room for the rows of documents that others encode, unless the stores are there."""
        key = self._key("pretrain", self._pretrain_inputs())
        if not self.prepared.is_done("pretrain", key):
            self._begin_pretrain(key)

    def _begin_pretrain(self, key: str) -> Path:
        """The folder of the stores; rows encoded before a kill are kept, known by their inputs."""
        folder = self.prepared.folder / "pretrain"
        if not (folder / f".{key[:16]}").exists():
            self.prepared.begin("pretrain")
            files.write_text(folder / f".{key[:16]}", "")
        return folder

    def _world(self, folder: Path) -> tuple[Store, Store, dict[str, Any]]:
        recipe, tokenizer = self.recipe, self.prepared.tokenizer()
        rows = fromworld.held_out_documents(recipe.seed, recipe.world.validation_documents)
        seen = fromworld.Seen(fromworld.documents(recipe.seed, world_documents(recipe)), rows)
        size = tokenizer.vocab_size
        held_out = document_rows(tokenizer, (row["text"] for row in rows))
        validation = write_store(folder / "validation", held_out, vocab_size=size)
        store = write_store(folder / "train", document_rows(tokenizer, seen), vocab_size=size)
        write_lines(folder / "validation.jsonl", rows)
        return store, validation, {"origin": "world", "validation_seen_in_training": seen.share()}

    def _shards(self, folder: Path) -> tuple[Store, Store, dict[str, Any]]:
        corpus = self.corpus()
        characters = sum(corpus.characters.values())
        workers = workers_for(characters, self.recipe.data.workers)
        stores = write_shards(folder, corpus, self.run / "tokenizer", workers)
        write_lines(folder / "validation.jsonl", ({"text": t} for t in corpus.texts("validation")))
        tokens = _tokens_of(stores["train"])
        # No two documents of a corpus are near duplicates on both sides of the split.
        report = {"origin": "files", "validation_seen_in_training": 0.0, "sources": tokens}
        return stores["train"], stores["validation"], report

    def _stage(self, stage: str, write: Callable[[Path, str, Counter[str]], dict]) -> None:
        """One of the last three stages' steps: skipped when done, else written and marked."""
        self._with_tokenizer()
        inputs = self.materials.inputs(stage)
        key = self._key(stage, inputs)
        if self.prepared.is_done(stage, key):
            return
        self.prepared.begin(stage)
        counts = Counter[str]()
        report = write(self.prepared.folder / stage, key, counts)
        bad = report.pop(BAD, [])
        if bad:
            write_lines(self.prepared.folder / stage / "bad_rows.jsonl", bad)
            self.say(
                f"warning: {len(bad):,} bad rows of data.{PARTS[stage]} left out, listed in "
                f"data/{stage}/bad_rows.jsonl"
            )
        report |= {"context": self.materials.context, **counts}
        raw = {PARTS[stage]: inputs["raw"]} if inputs["raw"] else {}
        self.prepared.finish(stage, key, report, raw)
        kept = f"{report['train']:,} to train on, {report['validation']:,} held out"
        self.say(f"data for {stage}: {kept}, {_ORIGINS[report['origin']]}")

    def sft(self) -> None:
        """Stores of demonstrations with masks, some as text, and held-out tasks."""

        def write(folder: Path, key: str, counts: Counter[str]) -> dict[str, Any]:
            train, held_out, tasks, report = self.materials.demonstrations()
            store = self._fitting.dialogues(folder / "train", train, counts)
            report["train"] = len(store)
            report["packing"] = packing_report(store.lengths.tolist(), self.materials.context + 1)
            store = self._fitting.dialogues(folder / "validation", held_out, counts)
            report["validation"] = len(store)
            write_lines(folder / "demonstrations.jsonl", [d.to_json() for d in train[:_EXAMPLES]])
            held = (task.to_json() for task in tasks)
            return report | {"tasks": write_lines(folder / "validation.jsonl", held)}

        self._stage("sft", write)

    def reward(self, sample: Sampler | None) -> None:
        """Stores of comparisons or judged answers, and held-out comparisons as text."""

        def write(folder: Path, key: str, counts: Counter[str]) -> dict[str, Any]:
            # Outside the stage's folder, so that a killed run goes on from them.
            samples = folder.with_name(f".samples-{key[:12]}")
            report: dict[str, Any] = {}
            if (judged := self.materials.judgements()) is not None:
                report = judged[2]
                for split, rows in zip(("train", "validation"), judged[:2], strict=True):
                    store = self._fitting.judgements(folder / "labelled" / split, rows, counts)
                    report[split] = len(store)
                if self.recipe.reward.objective != "binary":
                    return report
            rows, told = self.materials.comparisons(sample, samples)
            tokenizer, context = self.prepared.tokenizer(), self.materials.context
            heads = tuple(self.recipe.reward.heads)
            report |= told | write_rewards(folder, rows, tokenizer, context, heads, counts)
            shutil.rmtree(samples, ignore_errors=True)
            return report

        self._stage("reward", write)

    def rl(self) -> None:
        """Tasks whose prompts leave room for a response, to train on and held out."""

        def write(folder: Path, key: str, counts: Counter[str]) -> dict[str, Any]:
            train, held_out, report = self.materials.prompts()
            if report["origin"] == "files" and self.recipe.data.paths("pretrain"):
                report["in_pretraining_text"] = self._contaminated(folder, [*train, *held_out])
            # Tokens of a prompt that leave room for the longest response.
            room = self.materials.context - self.materials.longest
            for split, tasks in (("train", train), ("validation", held_out)):
                path = folder / f"{split}.jsonl"
                report[split] = self._fitting.tasks(path, tasks, room, counts)
            return report

        self._stage("rl", write)

    def _contaminated(self, folder: Path, tasks: list[Task]) -> int:
        """How many prompts share words in a row with the pretraining text; lists them."""
        ngram = self.recipe.data.decontaminate.ngram
        rows = shared_with_text([_asked(task) for task in tasks], self.corpus(), ngram)
        if rows:
            write_lines(folder / "contamination.jsonl", rows)
            self.say(
                f"warning: {len(rows):,} of {len(tasks):,} prompts share words in a row with the "
                "pretraining text, listed in data/rl/contamination.jsonl; "
                "data.decontaminate.prompts=true drops such documents"
            )
        return len(rows)

    @property
    def _fitting(self) -> Fitting:
        return Fitting(self.prepared.tokenizer(), self.materials.context)


def _asked(task: Task) -> str:
    """The text of a prompt."""
    if isinstance(task.prompt, str):
        return task.prompt
    return "\n".join(message["content"] for message in task.prompt)


def _tokens_of(store: Store) -> dict[str, int]:
    """Tokens of each source."""
    tokens = np.bincount(store.sources, store.lengths, minlength=len(store.source_names))
    return {name: int(n) for name, n in zip(store.source_names, tokens, strict=True)}
