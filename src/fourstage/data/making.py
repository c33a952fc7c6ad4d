"""Instructions made from a person's own text, each with a real passage as its right response."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fourstage.data import made
from fourstage.data.documents import place
from fourstage.data.words import HAN, SPACED, Vocabulary, remember, script_of, words_of
from fourstage.randomness import python_random
from fourstage.tasks import Task

# Passages of the training documents, by hash: for demonstrations, comparisons and RL prompts, and
# for measuring where the held-out documents have none.
SHARES = {"sft": 0.55, "preferences": 0.2, "prompts": 0.2, "held out": 0.05}
# More text than this adds nothing to twenty thousand instructions.
_MOST_CHARACTERS = 16_000_000
_ATTEMPTS = 40
_ABBREVIATED = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Capt|Col|Gen|Rev|No|vol|p|[A-Z])\.\s*$")
_SENTENCE = re.compile(r"[^.!?…。！？；]*[.!?…。！？；]+[\"'”’)\]」』）]*\s*")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
GAP = "____"

_WORDINGS = {
    ("continue", SPACED): (
        "Continue this passage: {given}",
        "What comes next? {given}",
        "Go on from here: {given}",
    ),
    ("continue", HAN): ("续写下面的文字：{given}", "接下来是什么？{given}", "请接着写：{given}"),
    ("words", SPACED): (
        "Write a passage with these words in it: {words}.",
        "Write something that contains these words: {words}.",
    ),
    ("words", HAN): ("写一段文字，其中包含这些词：{words}。", "用这些词写一段话：{words}。"),
    ("begin", SPACED): (
        "Write a passage that begins with: {opening}",
        "Begin with these words: {opening}",
    ),
    ("begin", HAN): ("以“{opening}”开头写一段文字。", "请用“{opening}”开头。"),
    ("choose", SPACED): (
        "Which word is missing, {offered}? {given}",
        "Fill in the gap with one of these words, {offered}: {given}",
    ),
    ("choose", HAN): ("空格处应填哪个词，{offered}？{given}", "从{offered}中选词填空：{given}"),
}


@dataclass(frozen=True)
class Limits:
    """Bounds of a made response, in characters."""

    least: int
    most: int

    @classmethod
    def within(cls, max_new_tokens: int, characters_per_token: float) -> Limits:
        """Responses that end well before the tokens of a rollout run out."""
        most = max(24, int(0.75 * max_new_tokens * characters_per_token))
        return cls(max(6, most // 8), most)


@dataclass(frozen=True)
class Paragraph:
    """Whole sentences that follow each other."""

    sentences: tuple[str, ...]
    script: str


def paragraphs_of(documents: Iterable[str]) -> list[Paragraph]:
    """Paragraphs of at least two whole sentences, from the first 16 million characters."""
    found: list[Paragraph] = []
    characters = 0
    for document in documents:
        characters += len(document)
        for block in _BLANK_LINES.split(document):
            sentences = _sentences(block)
            if len(sentences) > 1:
                found.append(Paragraph(sentences, script_of(block)))
        if characters > _MOST_CHARACTERS:
            break
    return found


def _sentences(block: str) -> tuple[str, ...]:
    """Whole sentences of a block; one that ends in an abbreviation goes on into the next."""
    found: list[str] = []
    for sentence in _SENTENCE.findall(block):
        if found and _ABBREVIATED.search(found[-1]):
            found[-1] += sentence
        elif words_of(sentence, HAN):
            found.append(sentence)
    return tuple(found)


def _balanced(text: str) -> bool:
    """Whether every quotation that opens also closes."""
    pairs = ("“”", "「」", "《》", "()", "（）")
    return text.count('"') % 2 == 0 and all(text.count(a) == text.count(b) for a, b in pairs)


def pool(paragraphs: list[Paragraph], part: str) -> list[Paragraph]:
    """The paragraphs that a hash gives to one part; all of them where they are too few to share."""
    names = list(SHARES)
    low = sum(SHARES[name] for name in names[: names.index(part)])
    high = low + SHARES[part]
    chosen = [p for p in paragraphs if low <= place("".join(p.sentences), "made") < high]
    return chosen if len(chosen) >= 20 else paragraphs


class Maker:
    """Makes (task, real response) pairs from paragraphs; a function of (seed, part, index).

    A pair is kept only where the real passage itself has a gold of 1, so the ceiling is reached.
    """

    def __init__(self, vocabulary: Vocabulary, limits: Limits, seed: int):
        self.vocabulary, self.limits, self.seed = vocabulary, limits, seed
        self._key = remember(vocabulary.known)
        self._askable = sorted(vocabulary.askable)
        self._by_script = {
            HAN: [w for w in self._askable if script_of(w) == HAN],
            SPACED: [w for w in self._askable if script_of(w) == SPACED],
        }

    def make(
        self,
        paragraphs: list[Paragraph],
        part: str,
        count: int,
        fits: Callable[[str, str], bool] | None = None,
    ) -> Iterator[tuple[Task, str]]:
        """Up to `count` pairs, no prompt twice; fewer where the text gives no more.

        Args:
            paragraphs: what the passages are taken from.
            part: names the stream of random numbers.
            count: how many at most.
            fits: whether a prompt and its response are short enough.
        """
        if not paragraphs:
            return
        asked: set[str] = set()
        for index in range(count):
            rng = python_random(self.seed, "made", part, index)
            for _ in range(_ATTEMPTS):
                pair = self._attempt(rng, made.KINDS[index % len(made.KINDS)], paragraphs)
                if pair is None or pair[0].prompt in asked:
                    continue
                if fits is None or fits(str(pair[0].prompt), pair[1]):
                    asked.add(str(pair[0].prompt))
                    yield pair
                    break

    def _attempt(
        self, rng: random.Random, kind: str, paragraphs: list[Paragraph]
    ) -> tuple[Task, str] | None:
        paragraph = rng.choice(paragraphs)
        facts, response = getattr(self, f"_{kind}")(rng, paragraph)
        if not response or not _balanced(response):
            return None
        wording = rng.choice(_WORDINGS[kind, paragraph.script])
        comma = "、" if paragraph.script == HAN else ", "
        shown = {k: comma.join(v) if isinstance(v, list) else v for k, v in facts.items()}
        facts |= {
            "checker": "made",
            "script": paragraph.script,
            "vocabulary": self._key,
            "least": self.limits.least,
            "most": self.limits.most,
        }
        task = Task(wording.format(**shown), kind, facts)
        # What the real passage must reach keeps verse without ends, lists and tables out.
        return (task, response) if made.gold(task, response) == 1.0 else None

    def _passage(self, rng: random.Random, sentences: tuple[str, ...]) -> str:
        """A run of whole sentences within the limits, from a random one on."""
        start = rng.randrange(len(sentences))
        return self._from(sentences[start:])

    def _from(self, sentences: tuple[str, ...]) -> str:
        """The first sentences, as many as fit."""
        text = ""
        for sentence in sentences:
            if len((text + sentence).rstrip()) > self.limits.most:
                break
            text += sentence
        return text.strip()

    def _continue(self, rng: random.Random, paragraph: Paragraph) -> tuple[dict, str]:
        at = rng.randrange(1, len(paragraph.sentences))
        given = ""
        for sentence in reversed(paragraph.sentences[:at]):
            if len(sentence + given) > self.limits.most:
                break
            given = sentence + given
        given = given.strip()
        subject = self.vocabulary.subject(given, paragraph.script)
        if not subject:
            return {}, ""
        return {"given": given, "subject": subject}, self._from(paragraph.sentences[at:])

    def _words(self, rng: random.Random, paragraph: Paragraph) -> tuple[dict, str]:
        response = self._passage(rng, paragraph.sentences)
        there = self.vocabulary.askable_in(response, paragraph.script)
        if len(there) < 2:
            return {}, ""
        chosen = set(rng.sample(there, min(len(there), rng.choice((2, 2, 3)))))
        # In the order in which they come: what is asked for stays learnable by a small model.
        return {"words": [word for word in there if word in chosen]}, response

    def _begin(self, rng: random.Random, paragraph: Paragraph) -> tuple[dict, str]:
        response = self._passage(rng, paragraph.sentences)
        if paragraph.script == HAN:
            size = rng.randint(2, 5)
        else:
            gaps = [match.start() for match in re.finditer(r"\s", response)]
            wanted = rng.randint(2, 4)
            size = gaps[wanted - 1] if len(gaps) > wanted else 0
        opening = response[:size].strip("，,；;：:、 \n")
        if not words_of(opening, paragraph.script):
            return {}, ""
        return {"opening": opening}, response

    def _choose(self, rng: random.Random, paragraph: Paragraph) -> tuple[dict, str]:
        sentence = rng.choice(paragraph.sentences).strip()
        there = self.vocabulary.askable_in(sentence, paragraph.script)
        others = self._by_script[paragraph.script]
        if not there or len(others) < 3 or len(sentence) > self.limits.most:
            return {}, ""
        answer = rng.choice(there)
        pattern = answer if paragraph.script == HAN else rf"(?i)\b{re.escape(answer)}\b"
        given, found = re.subn(pattern, GAP, sentence)
        wrong = [word for word in rng.sample(others, 3) if word != answer][:2]
        if found != 1 or len(wrong) < 2:
            return {}, ""
        offered = [answer, *wrong]
        rng.shuffle(offered)
        return {"given": given, "offered": offered, "answer": answer}, answer


def reference_task(prompt: str | list[dict[str, str]], reference: str) -> Task:
    """A person's own prompt with the answer they gave, judged by the words it shares with it."""
    facts = {"checker": "made", "reference": reference, "script": script_of(reference)}
    return Task(prompt, "answer", facts)


def free_task(
    prompt: str | list[dict[str, str]], vocabulary: Vocabulary | None, limits: Limits
) -> Task:
    """A person's own prompt without an answer, judged by manners alone.

    Without a vocabulary any word passes for known.
    """
    said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    facts = {
        "checker": "made",
        "script": script_of(said),
        "given": said,
        "vocabulary": remember(vocabulary.known) if vocabulary else None,
        "least": 2,
        "most": limits.most,
    }
    return Task(prompt, "free", facts)
