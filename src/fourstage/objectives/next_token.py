"""Predicting the next token: pretraining and supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from fourstage.data.batch import Batch
from fourstage.model.experts import Routing
from fourstage.model.transformer import Transformer
from fourstage.objectives.balance import balance_sum, router_z_sum
from fourstage.objectives.logprobs import token_logprobs, token_logprobs_and_normalisers
from fourstage.objectives.objective import Metrics, Sums, taken, trained_cells


@dataclass
class NextToken:
    """`-sum_t w_t log p(x_{t+1} | x_{<=t}) / sum_t w_t` over the cells of a step.

    The cross-entropy of Bengio et al., *A Neural Probabilistic Language Model* (2003), eq. 1 of
    *Improving Language Understanding by Generative Pre-Training* (Radford et al., 2018), averaged
    over trained tokens. `w` is the stream `loss_weights` [cells]: 1 on all of a document in
    pretraining, on the response alone in fine-tuning. Term: `tokens`; metric: `nll`, nats a token.

    With a `z_loss` coefficient also term and metric `z_loss`: `z_loss sum_t w_t log(Z_t)^2 / sum_t
    w_t`, where `Z` is the softmax's denominator, which draws it to 1 and so keeps logits small
    (PaLM, Chowdhery et al., 2022, section 5: 1e-4).

    For a mixture of experts also terms and metrics `balance` and `router_z`, over all cells, times
    their coefficients (`fourstage.objectives.balance`); the metrics are without them.
    """

    z_loss: float = 0.0
    balance: float = 0.0
    router_z: float = 0.0

    def counts(self, batch: Batch) -> dict[str, float]:
        tokens = float(batch.streams["loss_weights"].sum())
        counts = {"tokens": tokens, "z_loss": tokens} if self.z_loss else {"tokens": tokens}
        routed = {"balance": float(batch.cells), "router_z": float(batch.cells)}
        return counts | routed if self.balance or self.router_z else counts

    def sums(self, module: Transformer, micro: Batch) -> tuple[Sums, Metrics]:
        cells = trained_cells(micro)
        weights = taken(micro.streams["loss_weights"], cells)
        routing: list[Routing] = []
        asked = module.config.experts and (self.balance or self.router_z)
        extra = {"routing": routing} if asked else {}
        hidden = taken(module(micro.tokens, micro.layout, **extra), cells)
        rest = (taken(micro.targets, cells), module.config.vocab_size)
        head = module.plain_head
        terms: Sums = {}
        if self.z_loss:
            logprobs, normalisers = token_logprobs_and_normalisers(
                module.logits, hidden, *rest, weight=head
            )
            terms["z_loss"] = self.z_loss * (normalisers.square() * weights).sum()
        else:
            logprobs = token_logprobs(module.logits, hidden, *rest, weight=head)
        loss = -(logprobs * weights).sum()
        count = weights.sum()
        metrics: Metrics = {name: (term.detach(), count) for name, term in terms.items()}
        if routing:
            read = count.new_tensor(float(micro.cells))
            for name, coefficient, of in (
                ("balance", self.balance, balance_sum),
                ("router_z", self.router_z, router_z_sum),
            ):
                term = of(routing)
                terms[name] = coefficient * term
                metrics[name] = (term.detach(), read)
        return {"tokens": loss, **terms}, {"nll": (loss.detach(), count), **metrics}
