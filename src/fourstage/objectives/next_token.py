"""Predicting the next token: pretraining and supervised fine-tuning."""

from __future__ import annotations

from fourstage.data.batch import Batch
from fourstage.model.transformer import Transformer
from fourstage.objectives.logprobs import token_logprobs
from fourstage.objectives.objective import Metrics, Sums, trained_cells


class NextToken:
    """`-sum_t w_t log p(x_{t+1} | x_{<=t}) / sum_t w_t` over the cells of a step.

    The cross-entropy of Bengio et al., *A Neural Probabilistic Language Model* (2003), eq. 1 of
    *Improving Language Understanding by Generative Pre-Training* (Radford et al., 2018), averaged
    over trained tokens. `w` is the stream `loss_weights` [cells]: 1 on all of a document in
    pretraining, on the response alone in fine-tuning. Term: `tokens`; metric: `nll`, nats a token.
    """

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"tokens": float(batch.streams["loss_weights"].sum())}

    def sums(self, module: Transformer, micro: Batch) -> tuple[Sums, Metrics]:
        cells = trained_cells(micro)
        weights = micro.streams["loss_weights"][cells]
        hidden = module(micro.tokens, micro.layout)[cells]
        logprobs = token_logprobs(
            module.logits, hidden, micro.targets[cells], module.config.vocab_size
        )
        loss = -(logprobs * weights).sum()
        return {"tokens": loss}, {"nll": (loss.detach(), weights.sum())}
