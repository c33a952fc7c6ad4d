"""What the data of a recipe are made from: documents, demonstrations, comparisons and prompts.

Each part comes from the embedded world, from a person's own files, or is made from their text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from fourstage import files
from fourstage.data import fromfiles, fromworld
from fourstage.data.documents import Kept, keep, read_documents
from fourstage.data.encoding import Demonstration, Pair
from fourstage.data.fromtext import Sampler, TextMaterials
from fourstage.data.making import Limits
from fourstage.data.prepared import PreparedData
from fourstage.data.reading import RawFile, as_paths, find_files, raw_hashes
from fourstage.errors import InputError
from fourstage.recipe.schema import PARTS, Recipe
from fourstage.tasks import Task

_CONTEXT, _LONGEST = 256, 64
_DEMONSTRATIONS, _COMPARISONS, _PROMPTS, _DOCUMENTS = 6_000, 3_000, 4_000, 100_000
# A cautious guess where there is no text to measure it on.
_CHARACTERS_PER_TOKEN = 3.0

Report = dict[str, Any]


class Materials:
    """The parts of one recipe.

    Attributes:
        context: most cells of a row. longest: most tokens of a response.
    """

    # The last text read in this process, by what it was read from: one stage's serves the next.
    _kept: ClassVar[dict[str, Kept]] = {}
    _from_text: ClassVar[dict[str, TextMaterials]] = {}

    def __init__(self, recipe: Recipe, prepared: PreparedData):
        self.recipe, self.prepared = recipe, prepared
        self.context = recipe.model.context or _CONTEXT
        self.longest = recipe.rl.max_new_tokens or min(_LONGEST, self.context // 4)

    def found(self, part: str) -> list[RawFile]:
        """The raw files of a part; none where it is not read from files."""
        paths = getattr(self.recipe.data, part)
        if not paths or self.recipe.data.origin(part) != "files":
            return []
        return find_files(paths, f"data.{part}")[0]

    def raw(self, part: str) -> dict[str, str]:
        """name -> sha256 of the raw files of a part."""
        return raw_hashes(self.found(part))

    def text_inputs(self) -> Report:
        """All that decides which documents there are."""
        data = self.recipe.data
        if data.pretrain == "world":
            return {"world": self.recipe.world.model_dump()}
        cut = [data.document, data.key, data.validation]
        return {"raw": self.raw("pretrain"), "cut": cut}

    def inputs(self, stage: str) -> Report:
        """All that decides the rows of one of the last three stages, but for the tokenizer."""
        data, part = self.recipe.data, PARTS[stage]
        amounts = {"sft": data.demonstrations, "reward": data.comparisons, "rl": data.rl_prompts}
        told: Report = {
            "origin": data.origin(part),
            "raw": self.raw(part),
            "amount": amounts[stage],
            "validation": data.validation,
            "most": [self.context, self.longest],
            "measured": self.recipe.evaluation.model_dump(),
        }
        if data.origin(part) == "made":
            told["text"] = self.text_inputs()
            told["sampled_by"] = self._sampled_by() if stage == "reward" else None
        return told

    def _sampled_by(self) -> list[str]:
        weights = sorted((self.prepared.run / "sft" / "model").glob("*.safetensors"))
        return [files.sha256_file(path) for path in weights]

    def kept(self) -> Kept:
        """Documents of the pretraining files, split; read once in a process."""
        data = self.recipe.data
        paths = as_paths(data.pretrain or [])
        key = files.sha256_json([self.text_inputs(), [str(path) for path in paths]])
        if key not in self._kept:
            found, skipped = find_files(paths, "data.pretrain")
            where = f"data.pretrain={','.join(map(str, paths))}"
            kept = keep(read_documents(found, data.document, data.key), data.validation, where)
            kept.counts |= {"files": len(found), "files_passed_over": len(skipped)}
            self._kept.clear()
            self._kept[key] = kept
        return self._kept[key]

    def from_text(self) -> TextMaterials:
        """The maker of instructions from the text.

        Raises:
            InputError: there is no text of one's own to make them from.
        """
        if not self.recipe.data.pretrain or self.recipe.data.pretrain == "world":
            raise InputError(
                "data.pretrain is missing, and instructions are to be made from it: write "
                "data.pretrain=FOLDER, or data.sft, data.preferences and data.prompts"
            )
        told = [self.text_inputs(), self.context, self.longest, self.recipe.seed]
        key = files.sha256_json([told, files.sha256_folder(self.prepared.run / "tokenizer")])
        if key not in self._from_text:
            tokenizer = self.prepared.tokenizer()
            made = TextMaterials(
                self.kept(), tokenizer, self.context, self.longest, self.recipe.seed
            )
            self._from_text.clear()
            self._from_text[key] = made
        self.prepared.write_vocabulary(self._from_text[key].vocabulary.known)
        return self._from_text[key]

    def counted_texts(self) -> Iterator[str]:
        """What a vocabulary is trained on: documents, prompts and responses."""
        data, seed = self.recipe.data, self.recipe.seed
        if data.pretrain == "world":
            yield from fromworld.counted_texts(seed, self.recipe.world.documents or _DOCUMENTS)
        elif data.pretrain:
            yield from self.kept().train
        for part, kinds in (("sft", ("dialogue",)), ("preferences", ("comparison",))):
            if self.found(part):
                rows = fromfiles.read_part(self.found(part), kinds, part, data.validation)
                yield from (row.as_text() for row in rows.train)

    def documents(self) -> tuple[Iterable[str], list[dict], Report]:
        """Training documents, rows of held-out ones, and a report."""
        recipe = self.recipe
        if recipe.data.pretrain == "world":
            count = recipe.world.documents or _DOCUMENTS
            rows = fromworld.held_out_documents(recipe.seed, recipe.world.validation_documents)
            return fromworld.documents(recipe.seed, count), rows, {"origin": "world"}
        kept = self.kept()
        why = {
            "empty": "nothing but white space",
            "duplicate": "the same text was there before",
            "validation": f"held out by content hash; data.validation={recipe.data.validation:g}",
            "files_passed_over": "neither text, JSON lines nor a JSON list",
        }
        report = {"origin": "files", **kept.counts, "why": why}
        return kept.train, [{"text": text} for text in kept.validation], report

    def demonstrations(
        self,
    ) -> tuple[list[Demonstration], list[Demonstration], list[Task], Report]:
        """Training and held-out demonstrations, and held-out tasks."""
        data, seed, measured = self.recipe.data, self.recipe.seed, self.recipe.evaluation
        origin, count = data.origin("sft"), data.demonstrations or _DEMONSTRATIONS
        if origin == "world":
            train = list(fromworld.demonstrations(seed, 0, count))
            beyond = list(fromworld.demonstrations(seed, count, min(500, max(20, count // 20))))
            tasks = list(fromworld.tasks(seed, "validation", measured.instructions))
            return train, beyond, tasks, {"origin": origin}
        if origin == "files":
            rows = fromfiles.read_part(self.found("sft"), ("dialogue",), "sft", data.validation)
            train = [fromfiles.demonstration(row) for row in rows.train]
            held_out = [fromfiles.demonstration(row) for row in rows.validation]
            tasks = [each.task for each in held_out][: measured.instructions]
            return train, held_out, tasks, {"origin": origin, **rows.counts}
        made = self.from_text()
        train = made.demonstrations("sft", count)
        held_out = made.demonstrations("sft held out", measured.instructions)
        report = {"origin": origin, "asked_for": count, "held_out_borrowed": made.borrowed}
        return train, held_out, [each.task for each in held_out], report

    def comparisons(
        self, sample: Sampler | None, samples: Path
    ) -> tuple[list[Pair], list[Pair], Report]:
        """Training and held-out comparisons; samples drawn for them are kept in `samples`.

        Raises:
            InputError: they are to be made from the text, and there is nobody to `sample`.
        """
        data, seed, measured = self.recipe.data, self.recipe.seed, self.recipe.evaluation
        origin, count = data.origin("preferences"), data.comparisons or _COMPARISONS
        if origin == "world":
            train = list(fromworld.comparisons(seed, "train", count))
            held_out = list(fromworld.comparisons(seed, "validation", measured.pairs))
            return train, held_out, {"origin": origin}
        if origin == "files":
            found = self.found("preferences")
            rows = fromfiles.read_part(found, ("comparison",), "preferences", data.validation)
            train = [fromfiles.pair(row) for row in rows.train]
            held_out = [fromfiles.pair(row) for row in rows.validation][: measured.pairs]
            return train, held_out, {"origin": origin, **rows.counts}
        if sample is None:
            raise InputError(
                "data.preferences: comparisons made from the text need the SFT model's samples; "
                "run the sft stage first, or write data.preferences=FILE"
            )
        made, few = self.from_text(), min(measured.pairs, max(20, count // 10))
        train = list(made.comparisons("preferences", count, sample, samples / "train"))
        part = "preferences held out"
        held_out = list(made.comparisons(part, few, sample, samples / "held_out"))
        return train, held_out, {"origin": origin, "asked_for": count + few}

    def prompts(self) -> tuple[list[Task], list[Task], Report]:
        """Tasks to train on, and held-out ones."""
        data, seed, measured = self.recipe.data, self.recipe.seed, self.recipe.evaluation
        origin, count = data.origin("prompts"), data.rl_prompts or _PROMPTS
        if origin == "world":
            train = list(fromworld.tasks(seed, "rl", count))
            # Others than those that measure SFT.
            first = measured.instructions
            held_out = list(fromworld.tasks(seed, "validation", measured.prompts, first))
            return train, held_out, {"origin": origin}
        if origin == "files":
            kinds = ("prompt", "dialogue")
            rows = fromfiles.read_part(self.found("prompts"), kinds, "prompts", data.validation)
            text = self.from_text() if self.found("pretrain") else None
            usual = Limits.within(self.longest, _CHARACTERS_PER_TOKEN)
            make = fromfiles.task_maker(
                text.vocabulary if text else None, text.limits if text else usual
            )
            held_out = [make(row) for row in rows.validation][: measured.prompts]
            return [make(row) for row in rows.train], held_out, {"origin": origin, **rows.counts}
        made = self.from_text()
        train = made.tasks("prompts", count)
        held_out = made.tasks("prompts held out", measured.prompts)
        return train, held_out, {"origin": origin, "asked_for": count}
