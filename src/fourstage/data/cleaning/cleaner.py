"""Documents through the steps of cleaning, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fourstage.data.cleaning import language
from fourstage.data.cleaning.boilerplate import boilerplate
from fourstage.data.cleaning.c4 import c4, terminal
from fourstage.data.cleaning.control import control
from fourstage.data.cleaning.features import Features
from fourstage.data.cleaning.fineweb import fineweb
from fourstage.data.cleaning.gopher import gopher
from fourstage.data.cleaning.pii import pii
from fourstage.data.cleaning.quality import classifier_at, quality
from fourstage.data.cleaning.repetition import repetition
from fourstage.data.cleaning.steps import expand
from fourstage.data.cleaning.unicode import repair
from fourstage.data.cleaning.verdict import KEPT, Verdict
from fourstage.errors import InputError

# Steps for any text, and those for prose, which leave code and tables alone.
_ANY: dict[str, Callable[[str], Verdict]] = {"unicode": repair, "control": control, "pii": pii}
_PROSE: dict[str, Callable[[Features], Verdict]] = {
    "boilerplate": boilerplate,
    "repetition": repetition,
    "gopher": gopher,
    "terminal": terminal,
    "c4": c4,
    "fineweb": fineweb,
}


@dataclass(frozen=True)
class Cleaned:
    """What became of a document.

    Attributes:
        text: None where it was dropped.
        reason: "step.rule" for which it was dropped, such as "gopher.symbol_ratio".
        detail: the number that decided, such as "0.23 > 0.1".
        edits: "step.what" -> how often it was changed, also in a text that was dropped later.
        language: ISO 639-1, "und" where it was not asked for or cannot be told.
        notes: what else is worth counting: "skipped.code", "skipped.table".
    """

    text: str | None
    reason: str | None = None
    detail: str = ""
    edits: Mapping[str, int] = field(default_factory=dict)
    language: str = language.UNDETERMINED
    notes: Mapping[str, int] = field(default_factory=dict)


class Cleaner:
    """Cleans documents; the same for the same text, in whatever process and order.

    Holds settings alone: models are read by the process that needs them.

    Args:
        steps: names of steps or presets, see `STEPS`; taken in the order of that list.
        languages: keep documents in these, and those of which none can be told; adds the step
            `language`. None: all.
        classifier: file of a quality classifier, for the step `quality`.
        threshold: least score of it; None: GPT-3's rule.

    Raises:
        InputError: an unknown step or language, or the step `quality` without a classifier.
    """

    def __init__(
        self,
        steps: str | Sequence[str],
        languages: Sequence[str] | None = None,
        classifier: Path | None = None,
        threshold: float | None = None,
    ):
        self.languages = None if languages is None else language.checked(languages)
        wanted = [steps] if isinstance(steps, str) else list(steps)
        self.steps = expand([*wanted, "language"] if self.languages else wanted)
        self.classifier = classifier
        self.threshold = threshold
        if "quality" in self.steps and classifier is None:
            raise InputError(
                "clean: the step 'quality' needs a classifier: name its file, or leave the step out"
            )

    def __call__(self, text: str, *, is_code: bool = False) -> Cleaned:
        """Cleans one document; `is_code`: it is known to be code, as by the name of its file."""
        edits: Counter[str] = Counter()
        notes: dict[str, int] = {}
        features = Features(text)
        for step in self.steps:
            if not features.text.strip():
                return Cleaned(None, "empty", "", edits, features.language, notes)
            # Whoever asks for some languages does not want the code and tables of others.
            if step not in _ANY and step != "language":
                structure = "code" if is_code else features.structure
                if structure:
                    notes[f"skipped.{structure}"] = 1
                    continue
            verdict = self._verdict(step, features)
            edits.update({f"{step}.{what}": count for what, count in verdict.edits.items()})
            if verdict.rule:
                reason = f"{step}.{verdict.rule}"
                return Cleaned(None, reason, verdict.detail, edits, features.language, notes)
            if verdict.text is not None:
                features = features.edited(verdict.text)
        if not features.text.strip():
            return Cleaned(None, "empty", "", edits, features.language, notes)
        return Cleaned(features.text, None, "", edits, features.language, notes)

    def _verdict(self, step: str, features: Features) -> Verdict:
        if step in _ANY:
            return _ANY[step](features.text)
        if step in _PROSE:
            return _PROSE[step](features)
        if step == "quality":
            assert self.classifier is not None
            return quality(features.text, classifier_at(self.classifier), self.threshold)
        features.language, confidence = language.identify(features.text)
        unwanted = self.languages and features.language not in (
            *self.languages,
            language.UNDETERMINED,
        )
        return Verdict("other", f"{features.language} {confidence:.2f}") if unwanted else KEPT
