"""Tiny models, random batches and the update of an objective, for the tests of objectives."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch, Example
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.objectives.advantages import gae, group_advantages, rewards_with_kl, spread, whiten
from fourstage.objectives.mismatching import with_mismatches

VOCABULARY = 19


def tiny_model(head: str = "language", seed: int = 0, dtype: torch.dtype = torch.float64):
    """Two layers, every weight random: a fresh model's zero projections would hide attention."""
    config = ModelConfig(
        vocab_size=VOCABULARY,
        width=16,
        layers=2,
        heads=2,
        kv_heads=1,
        mlp_width=24,
        context=64,
        head_width=8,
        qk_norm=True,
        tie_embeddings=True,
    )
    model = Transformer(config, head=head)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=drawn) * 0.5)
    return model.to(dtype)


class ScorerWithLanguage(nn.Module):
    """A scalar-headed model that also predicts tokens, through its embeddings."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.scorer = tiny_model("scalar", seed)
        self.config = self.scorer.config
        self.scores = self.scorer.scores

    def forward(self, tokens, layout):
        return self.scorer(tokens, layout)

    def language_logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.scorer.model.embed_tokens.weight.T


def tiny_actor_critic(dtype: torch.dtype = torch.float64) -> ActorCritic:
    return ActorCritic(tiny_model("language", 1, dtype), tiny_model("scalar", 2, dtype))


def random_examples(count: int, seed: int = 0, masked: bool = True) -> list[Example]:
    """Documents of 3 to 14 tokens; a masked one trains a tail of them."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        n = int(rng.integers(3, 15))
        mask = np.arange(n) >= int(rng.integers(1, n)) if masked else None
        examples.append(Example(rng.integers(0, VOCABULARY, n), mask))
    return examples


def double_streams(batch: Batch) -> Batch:
    batch.streams = {name: stream.double() for name, stream in batch.streams.items()}
    return batch


def language_batch(count: int = 7, seed: int = 0) -> Batch:
    return double_streams(Batch.language(random_examples(count, seed)))


def pair_batch(pairs: int = 5, seed: int = 0) -> Batch:
    examples = random_examples(2 * pairs, seed)
    batch = Batch.rows(examples, group=[i // 2 for i in range(2 * pairs)])
    drawn = torch.Generator().manual_seed(seed)
    batch.documents["margins"] = torch.rand(2 * pairs, generator=drawn, dtype=torch.float64)
    return double_streams(batch)


def rollout_batch(documents: int = 8, seed: int = 0) -> Batch:
    """Every stream that PPO or GRPO reads, old policies far enough away for clips to bite."""
    batch = language_batch(documents, seed)
    drawn = torch.Generator().manual_seed(seed + 1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=drawn, dtype=torch.float64)

    streams, weights, lengths = batch.streams, batch.streams["loss_weights"], batch.lengths
    cells = batch.cells
    with torch.no_grad():
        from fourstage.objectives.logprobs import logprobs

        now = logprobs(tiny_model("language", 1), batch, 0.7)
    streams["old_logprobs"] = (now + 0.3 * noise(cells)) * weights
    streams["ref_logprobs"] = (now + 0.3 * noise(cells)) * weights
    streams["rollout_logprobs"] = streams["old_logprobs"] + 0.01 * noise(cells) * weights
    streams["old_values"] = noise(cells) * weights
    scores = noise(documents)
    rewards = rewards_with_kl(
        scores, streams["old_logprobs"], streams["ref_logprobs"], weights, lengths, 0.1
    )
    advantages, streams["returns"] = gae(rewards, streams["old_values"], weights, lengths)
    streams["advantages"] = whiten(advantages, weights)
    return batch


def group_batch(documents: int = 8, seed: int = 0) -> Batch:
    """A rollout batch whose advantages are those of groups of four."""
    batch = rollout_batch(documents, seed)
    drawn = torch.Generator().manual_seed(seed + 2)
    scores = torch.randn(documents, generator=drawn, dtype=torch.float64)
    advantages = group_advantages(scores, torch.arange(documents) // 4)
    weights = batch.streams["loss_weights"]
    batch.streams["advantages"] = spread(advantages, batch.lengths, weights)
    return batch


def with_reference(batch: Batch, seed: int = 0) -> Batch:
    """Log-probabilities of a reference somewhere near the policy of seed 1."""
    from fourstage.objectives.logprobs import logprobs

    drawn = torch.Generator().manual_seed(seed + 3)
    with torch.no_grad():
        now = logprobs(tiny_model("language", 1), batch)
    noise = torch.randn(batch.cells, generator=drawn, dtype=torch.float64)
    batch.streams["ref_logprobs"] = (now + 0.3 * noise) * batch.streams["loss_weights"]
    return batch


def preference_batch(pairs: int = 5, seed: int = 0) -> Batch:
    """Pairs of responses, each of at least one trained token, with a reference."""
    batch = with_reference(pair_batch(pairs, seed), seed)
    del batch.documents["margins"]
    return batch


def kto_batch(documents: int = 8, seed: int = 0) -> Batch:
    """Good and bad responses, and mismatched ones for z."""
    batch = language_batch(documents, seed)
    batch.documents["labels"] = torch.tensor([1, -1, 1, 1, -1, 1, -1, -1][:documents])
    return with_reference(with_mismatches(batch), seed)


def update(objective, module: nn.Module, micro_batches: list[Batch], whole: Batch):
    """Loss and gradients as the trainer takes them: sums over micro-batches by counts of all."""
    module.zero_grad()
    counts = objective.counts(whole)
    total = 0.0
    for micro in micro_batches:
        sums, _ = objective.sums(module, micro)
        loss = sum(sums[name] / counts[name] for name in sums)
        loss.backward()
        total += loss.item()
    return total, gradients(module)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: weight.grad.clone()
        for name, weight in module.named_parameters()
        if weight.grad is not None
    }


def assert_same_update(first, second, tolerance: float) -> None:
    """Equal losses and gradients; the gradients' scale is that of the largest entry."""
    assert abs(first[0] - second[0]) <= tolerance * max(1.0, abs(second[0]))
    assert first[1].keys() == second[1].keys()
    scale = max(1.0, max(float(g.abs().max()) for g in second[1].values()))
    for name, gradient in first[1].items():
        difference = float((gradient - second[1][name]).abs().max())
        assert difference <= tolerance * scale, (name, difference)
