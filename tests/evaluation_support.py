"""A tiny tokenizer and tiny models over the embedded world, for tests of what is measured."""

from __future__ import annotations

from functools import lru_cache

from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.tokenizer import Tokenizer, train_tokenizer
from fourstage.worlds import calibration as world


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    texts = [world.document(0, "train", index).text for index in range(300)]
    texts += [text for i in range(200) for text in (world.demonstration(0, i)[1], _prompt(i))]
    return train_tokenizer(texts, 400)


def _prompt(index: int) -> str:
    return world.demonstration(0, index)[0].prompt


def model(seed: int = 0, head: str = "language", context: int = 128, awake: bool = True):
    """A model of width 32; `awake` fills the output projections that begin at zero."""
    config = ModelConfig(
        vocab_size=tokenizer().vocab_size,
        width=32,
        layers=2,
        heads=2,
        kv_heads=2,
        mlp_width=64,
        context=context,
    )
    made = Transformer(config, head).initialise(seed)
    if awake:
        import torch

        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in made.parameters():
                if weight.dim() == 2 and not weight.any():
                    weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
    return made.eval()
