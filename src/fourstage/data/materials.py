"""What the data of a recipe are made from: documents, demonstrations, comparisons and prompts.

Each part comes from the embedded world, from a person's own files, or is made from their text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from fourstage import files
from fourstage.data import fromfiles, fromworld
from fourstage.data.corpus import Corpus, corpus_inputs
from fourstage.data.documents import Kept
from fourstage.data.encoding import Demonstration, Judgement
from fourstage.data.fromtext import Sampler, TextMaterials
from fourstage.data.judging import Judging, judged_inputs, kinds_for
from fourstage.data.making import Limits
from fourstage.data.prepared import PreparedData
from fourstage.data.reading import RawFile, find_files, raw_hashes
from fourstage.data.rewards import RewardRows, from_rows
from fourstage.data.shapes import check_mapping
from fourstage.errors import InputError
from fourstage.recipe.preference import takes_judgements
from fourstage.recipe.rewarding import RewardKind
from fourstage.recipe.schema import PARTS, Recipe
from fourstage.tasks import Task

_CONTEXT, _LONGEST = 256, 64
_DEMONSTRATIONS, _COMPARISONS, _PROMPTS, _DOCUMENTS = 6_000, 3_000, 4_000, 100_000
# A cautious guess where there is no text to measure it on.
_CHARACTERS_PER_TOKEN = 3.0
# Instructions are made, and merges counted, on so much of a larger text; more changes neither.
_READ_CHARACTERS = 64_000_000
_COUNTED_CHARACTERS = 100_000_000

Report = dict[str, Any]
# Where a report carries the rows that were left out, to be listed in a file of their own.
BAD = "bad"


def world_documents(recipe: Recipe) -> int:
    """How many documents of the world are written out."""
    return recipe.world.documents or _DOCUMENTS


class Materials:
    """The parts of one recipe.

    Args:
        corpus: gives the prepared text, which it prepares where need be.

    Attributes:
        context: most cells of a row. longest: most tokens of a response.
    """

    # The last makers of this process, by what they were made from: one stage's serves the next.
    _from_text: ClassVar[dict[str, TextMaterials]] = {}

    def __init__(self, recipe: Recipe, prepared: PreparedData, corpus: Callable[[], Corpus]):
        self.recipe, self.prepared, self.corpus = recipe, prepared, corpus
        self.context = recipe.model.context or _CONTEXT
        self.longest = recipe.rl.max_new_tokens or min(_LONGEST, self.context // 4)

    def found(self, part: str) -> list[RawFile]:
        """The raw files of one of the last three parts; none where it is not read from files."""
        paths = self.recipe.data.paths(part)
        return find_files(paths, f"data.{part}")[0] if paths else []

    @property
    def _judged(self) -> tuple[tuple[str, ...], Judging | None]:
        """Kinds of rows of `data.preferences`, and what is read beside them; KTO learns from
        comparisons and single judgements alike."""
        if takes_judgements(self.recipe.rl):
            return ("comparison", "ranking", "unpaired"), None
        section = self.recipe.reward
        return kinds_for(section), Judging(section)

    def raw(self, part: str) -> dict[str, str]:
        """name -> sha256 of the raw files of a part."""
        return raw_hashes(self.found(part))

    def text_inputs(self) -> Report:
        """All that decides which documents there are."""
        data = self.recipe.data
        if data.pretrain == "world":
            return {"world": self.recipe.world.model_dump()}
        return corpus_inputs(data)

    def inputs(self, stage: str) -> Report:
        """All that decides the rows of one of the last three stages, but for the tokenizer."""
        data, part = self.recipe.data, PARTS[stage]
        amounts = {"sft": data.demonstrations, "reward": data.comparisons, "rl": data.rl_prompts}
        told: Report = {
            "origin": data.origin(part),
            **self.own_rows(part),
            "amount": amounts[stage],
            "validation": data.validation,
            "most": [self.context, self.longest],
            "measured": self.recipe.evaluation.model_dump(),
        }
        if stage == "reward":
            told |= judged_inputs(self.recipe)
        if stage == "rl" and data.origin(part) == "files" and self.recipe.rl.rewards:
            told["columns"] = True
        if data.origin(part) == "made":
            told["text"] = self.text_inputs()
            told["sampled_by"] = self._sampled_by() if stage == "reward" else None
        elif stage == "rl" and data.origin(part) == "files" and data.paths("pretrain"):
            # Its words and lengths decide what is asked of a response.
            told["text"] = self.text_inputs()
        return told

    def own_rows(self, part: str) -> Report:
        """All that decides the rows of a part that is read from files, but for the split."""
        data = self.recipe.data
        how: Report = {"keys": data.keys, "bad_rows": data.bad_rows} if data.paths(part) else {}
        if how and part == "preferences" and takes_judgements(self.recipe.rl):
            how["judgements"] = True
        return {"raw": self.raw(part), **how}

    def _sampled_by(self) -> list[str]:
        weights = sorted((self.prepared.run / "sft" / "model").glob("*.safetensors"))
        return [files.sha256_file(path) for path in weights]

    def kept(self) -> Kept:
        """Documents of the prepared text, split; of a large one, some spread over it."""
        corpus = self.corpus()
        train, held_out = (
            list(corpus.texts(split, _READ_CHARACTERS)) for split in ("train", "validation")
        )
        return Kept(train, held_out)

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

    def rows(
        self, part: str, kinds: tuple[str, ...], judging: Judging | None = None
    ) -> fromfiles.Rows:
        """The rows of a person's own files."""
        data = self.recipe.data
        check_mapping(data.keys)
        skip = data.bad_rows == "skip"
        return fromfiles.read_part(
            self.found(part),
            kinds,
            part,
            data.validation,
            data.keys,
            skip_bad=skip,
            judging=judging,
            columns=part == "prompts" and bool(self.recipe.rl.rewards),
        )

    def counted_texts(self) -> Iterator[str]:
        """What a vocabulary is trained on: documents, prompts and responses."""
        data, seed = self.recipe.data, self.recipe.seed
        if data.pretrain == "world":
            yield from fromworld.counted_texts(seed, world_documents(self.recipe))
        elif data.pretrain:
            yield from self.corpus().texts("train", _COUNTED_CHARACTERS)
        for part, kinds, judging in (("sft", ("dialogue",), None), ("preferences", *self._judged)):
            if self.found(part):
                rows = self.rows(part, kinds, judging)
                yield from (row.as_text() for row in rows.train)

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
            rows = self.rows("sft", ("dialogue",))
            train = [fromfiles.demonstration(row) for row in rows.train]
            held_out = [fromfiles.demonstration(row) for row in rows.validation]
            tasks = [each.task for each in held_out][: measured.instructions]
            return train, held_out, tasks, {"origin": origin, **rows.counts, BAD: rows.bad}
        made = self.from_text()
        train = made.demonstrations("sft", count)
        held_out = made.demonstrations("sft held out", measured.instructions)
        report = {"origin": origin, "asked_for": count, "held_out_borrowed": made.borrowed}
        return train, held_out, [each.task for each in held_out], report

    def comparisons(self, sample: Sampler | None, samples: Path) -> tuple[RewardRows, Report]:
        """Training and held-out comparisons, or what else `reward.objective` learns from.

        Samples drawn for comparisons made from the text are kept in `samples`.

        Raises:
            InputError: they are to be made from the text, and there is nobody to `sample`; or the
                origin has no such rows.
        """
        data, seed, measured = self.recipe.data, self.recipe.seed, self.recipe.evaluation
        origin, count = data.origin("preferences"), data.comparisons or _COMPARISONS
        section = self.recipe.reward
        if origin == "files":
            rows = self.rows("preferences", kinds_for(section), Judging(section))
            found = from_rows(rows.train, rows.validation, section, measured.pairs)
            return found, {"origin": origin, **rows.counts, BAD: rows.bad}
        _require_rows(section, origin)
        if origin == "world":
            held_out = list(fromworld.comparisons(seed, "validation", measured.pairs))
            if section.objective == "bradley_terry":
                train = list(fromworld.comparisons(seed, "train", count))
                return RewardRows(train, held_out, held_out), {"origin": origin}
            few = len(held_out)
            judged = list(fromworld.judged(seed, "train", count, section.objective))
            beyond = list(fromworld.judged(seed, "validation", few, section.objective))
            return RewardRows(judged, beyond, held_out), {"origin": origin}
        if sample is None:
            raise InputError(
                "data.preferences: comparisons made from the text need the SFT model's samples; "
                "run the sft stage first, or write data.preferences=FILE"
            )
        made, few = self.from_text(), min(measured.pairs, max(20, count // 10))
        train = list(made.comparisons("preferences", count, sample, samples / "train"))
        part = "preferences held out"
        held_out = list(made.comparisons(part, few, sample, samples / "held_out"))
        found = RewardRows(train, held_out, held_out)
        return found, {"origin": origin, "asked_for": count + few}

    def judgements(self) -> tuple[list[Judgement], list[Judgement], Report] | None:
        """Training and held-out single judgements for KTO, where `data.preferences` holds such
        rows; comparisons beside them are two each."""
        is_of_files = self.recipe.data.origin("preferences") == "files"
        if not is_of_files or not takes_judgements(self.recipe.rl):
            return None
        rows = self.rows("preferences", *self._judged)
        if not any(row.kind == "unpaired" for row in [*rows.train, *rows.validation]):
            return None
        train = [each for row in rows.train for each in fromfiles.judgements(row)]
        held_out = [each for row in rows.validation for each in fromfiles.judgements(row)]
        most = 2 * self.recipe.evaluation.pairs
        told = {"origin": "files", **rows.counts, BAD: rows.bad}
        return train, held_out[:most], told

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
            rows = self.rows("prompts", ("prompt", "dialogue"))
            text = self.from_text() if data.paths("pretrain") else None
            usual = Limits.within(self.longest, _CHARACTERS_PER_TOKEN)
            make = fromfiles.task_maker(
                text.vocabulary if text else None, text.limits if text else usual
            )
            held_out = [make(row) for row in rows.validation][: measured.prompts]
            told = {"origin": origin, **rows.counts, BAD: rows.bad}
            return [make(row) for row in rows.train], held_out, told
        made = self.from_text()
        train = made.tasks("prompts", count)
        held_out = made.tasks("prompts held out", measured.prompts)
        return train, held_out, {"origin": origin, "asked_for": count}


def _require_rows(section: RewardKind, origin: str) -> None:
    """Checks that rows which are not a person's own can be of the kind that is asked for."""
    own = "write data.preferences=FILE, or leave it out"
    if section.heads:
        raise InputError(f"reward.heads: only rows of one's own say which head they are of: {own}")
    if section.ties != "drop":
        raise InputError(f"reward.ties={section.ties}: only rows of one's own have ties: {own}")
    if section.objective == "process" or (
        origin == "made" and section.objective != "bradley_terry"
    ):
        raise InputError(
            f"reward.objective={section.objective}: "
            f"{'the world' if origin == 'world' else 'text'} has no such rows: {own}"
        )
