"""What is known of the data before it is prepared, and estimates for what is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fourstage.model.config import ModelConfig
from fourstage.planning.published import through
from fourstage.recipe.schema import Recipe

# Bytes of English a token stands for, by size of the vocabulary (byte-level BPE).
_BYTES_PER_TOKEN = ((320, 1.7), (860, 2.6), (8192, 3.7), (32000, 4.3), (50257, 4.5))
# Special tokens around a turn of a conversation.
_AROUND = 2


@dataclass(frozen=True)
class RowCount:
    """About how many rows there are of a part, counted in its files before they are prepared.

    Attributes:
        train, held_out: what the stage learns from, and what it is measured on.
        text_bytes: mean UTF-8 bytes of one; of a comparison those of its question with one answer.
        turns: mean messages of one.
    """

    train: int
    held_out: int
    text_bytes: float
    turns: float

    def tokens(self, vocab_size: int) -> float:
        """Mean tokens of a row."""
        held = through(_BYTES_PER_TOKEN, vocab_size, beyond=False)
        return self.text_bytes / held + self.turns * _AROUND


@dataclass(frozen=True)
class DataFacts:
    """What the rules may know. Each is None until it has been measured; estimates stand in.

    Attributes:
        text_bytes: UTF-8 bytes of the pretraining text.
        pretrain_tokens, sft_tokens: tokens of the training shards, but for replayed ones.
        comparisons: how many rows there are that a reward model learns from. preferences: how many
            comparisons the rl stage does, where it learns from them: a ranking makes several, and
            two single judgements count as one.
        prompts: how many there are to train on.
        counted: part of the data ("sft", "preferences", "prompts") -> its rows, where they were
            counted before they are prepared.
        vocab_size: of the tokenizer, which can come out below the size asked for.
        model: shape of the model folder that training starts from.
        device: type of the device, "cpu" or "cuda".
        memory_bytes: memory of one device.
        devices: how many share the weights.
    """

    text_bytes: int | None = None
    pretrain_tokens: int | None = None
    sft_tokens: int | None = None
    comparisons: int | None = None
    preferences: int | None = None
    prompts: int | None = None
    counted: Mapping[str, RowCount] = field(default_factory=dict)
    vocab_size: int | None = None
    model: ModelConfig | None = None
    device: str = "cpu"
    memory_bytes: float | None = None
    devices: int = 1


@dataclass(frozen=True)
class RowTokens:
    """Tokens of a row: a document, a demonstration, an answer compared, an episode's two parts."""

    document: float
    demonstration: float
    compared: float
    prompt: float
    response: float


# Counted over the embedded world at its vocabulary of about 860, and over instructions made from
# English prose at 1,500 with responses of at most 64 tokens; usual sizes of other data.
_WORLD = RowTokens(document=44, demonstration=50, compared=35, prompt=13, response=18)
_MADE = RowTokens(document=500, demonstration=58, compared=58, prompt=33, response=25)
_FILES = RowTokens(document=500, demonstration=250, compared=250, prompt=100, response=120)
# origin -> its rows, and the vocabulary they were counted at.
_ORIGINS = {"world": (_WORLD, 860), "made": (_MADE, 1500), "files": (_FILES, 32000)}
# The world's few words shorten much faster than English: tokens a row over those at 860 pieces.
_WORLD_LENGTH = ((320, 2.25), (400, 1.8), (512, 1.42), (640, 1.18), (860, 1.0))


def _length(origin: str, vocab_size: int | None) -> float:
    """Tokens a row at this vocabulary over those at the one it was counted at."""
    counted_at = _ORIGINS[origin][1]
    if origin == "world":
        return through(_WORLD_LENGTH, vocab_size or counted_at, beyond=False)
    bytes_each = [
        through(_BYTES_PER_TOKEN, size, beyond=False)
        for size in (counted_at, vocab_size or counted_at)
    ]
    return bytes_each[0] / bytes_each[1]


def row_tokens(recipe: Recipe, counted: Mapping[str, RowCount] | None = None) -> RowTokens:
    """Estimated tokens a row of each part of the recipe's data, none longer than the context.

    Args:
        counted: parts whose rows were read, and are as long as those.
    """
    most, vocab_size = recipe.model.context or 2048, recipe.tokenizer.vocab_size
    known = counted or {}

    def tokens(part: str, row: str) -> float:
        origin = recipe.data.origin(part)
        if part in known and row != "response":
            return known[part].tokens(vocab_size or _ORIGINS[origin][1])
        return getattr(_ORIGINS[origin][0], row) * _length(origin, vocab_size)

    return RowTokens(
        document=min(most, tokens("pretrain", "document")),
        demonstration=min(most, tokens("sft", "demonstration")),
        compared=min(most, tokens("preferences", "compared")),
        prompt=min(most / 2, tokens("prompts", "prompt")),
        response=min(recipe.rl.max_new_tokens or most / 4, tokens("prompts", "response")),
    )


def sft_tokens(facts: DataFacts, vocab_size: int, context: int) -> float | None:
    """Tokens of the demonstrations to train on; None while nothing is known of them."""
    if facts.sft_tokens is not None:
        return facts.sft_tokens
    count = facts.counted.get("sft")
    if count is None:
        return None
    return count.train * min(context, count.tokens(vocab_size))


def training_text_tokens(recipe: Recipe, facts: DataFacts, vocab_size: int) -> float | None:
    """Tokens of pretraining text that there are, with what is replayed beside an epoch of it.

    None when unknown or, in the world, endless.
    """
    beside = 1 - recipe.data.replay.share if recipe.data.replay else 1.0
    if facts.pretrain_tokens is not None:
        return facts.pretrain_tokens / beside
    if facts.text_bytes is None or recipe.data.pretrain == "world":
        return None
    held_in = facts.text_bytes * (1 - recipe.data.validation) / beside
    return held_in / through(_BYTES_PER_TOKEN, vocab_size, beyond=False)
