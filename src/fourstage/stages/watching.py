"""What is watched of a reward model while a policy learns from it; nothing of it is learned from.

Scores rise in training, whether answers get better or leave what the reward model knows. So each
iteration tells how many scores lie where hardly any of its training comparisons have one, how far
the members of an ensemble disagree, and what a second reward model says, which pays nothing (Gao et
al., 2022; Coste et al., 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fourstage.data.store import Store
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.drift import Familiar, disagreement
from fourstage.evaluation.responses import Response
from fourstage.evaluation.scoring import scores
from fourstage.model.transformer import Transformer
from fourstage.parallel.group import Group
from fourstage.randomness import permutation
from fourstage.stages.context import StageContext
from fourstage.stages.models import reward_model

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

# Share of familiar scores on either side of the range.
_TAIL = 0.01
# Training comparisons' answers that set the range, and responses that members are compared on.
_ANSWERS, _COMPARED = 512, 64


@dataclass(frozen=True)
class Watch:
    """What a reward model's scores are held against.

    Attributes:
        familiar: its scores before the first update.
        range: [low, high] that 98% of the scores of its training comparisons lie in; where there
            are none, of the first model's own responses.
        watcher: a second reward model, frozen.
    """

    familiar: Familiar
    range: tuple[float, float]
    watcher: Transformer | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any], watcher: Transformer | None) -> Watch:
        """From what `told_of` wrote."""
        low, high = told["range"]
        return cls(Familiar(told["high"], told["disagreement"]), (low, high), watcher)

    def numbers(
        self,
        learned: Sequence[float],
        responses: Sequence[Response],
        model: Transformer,
        tokenizer: Tokenizer,
        group: Group,
    ) -> dict[str, float]:
        """`proxy_unfamiliar`, `proxy_disagreement`, `watch_reward`; all processes call it.

        Args:
            learned: [responses] what the reward model `model` says of each.
        """
        found = {"proxy_unfamiliar": float(outside(np.asarray(learned), self.range).mean())}
        if not self.familiar.disagreement and self.watcher is None:
            return found
        rows = reward_rows(tokenizer, responses)
        if self.familiar.disagreement:
            now = disagreement(model, rows[:_COMPARED])
            found["proxy_disagreement"] = now / self.familiar.disagreement
        if self.watcher is not None:
            found["watch_reward"] = float(shared_scores(self.watcher, rows, group).mean())
        return found


def told_of(
    familiar: Familiar, drawn: np.ndarray, compared: np.ndarray | None = None
) -> dict[str, Any]:
    """A watch as JSON.

    Args:
        drawn: scores of the first model's own responses.
        compared: scores of training comparisons, where there are any.
    """
    low, high = np.quantile(drawn if compared is None else compared, (_TAIL, 1 - _TAIL))
    return {
        "high": familiar.high,
        "disagreement": familiar.disagreement,
        "range": [float(low), float(high)],
    }


def outside(found: np.ndarray, within: tuple[float, float]) -> np.ndarray:
    """[scores] bool: which lie outside of a range; what is no number does."""
    return ~((found >= within[0]) & (found <= within[1]))


def compared_scores(context: StageContext, model: Transformer) -> np.ndarray | None:
    """Scores of answers that the reward model of this run was trained on; None of one from outside,
    whose comparisons are not known."""
    folder = context.data / "reward" / "train"
    if context.section.reward_model is not None or not folder.is_dir():
        return None
    store = Store.open(folder)
    # Drawn, since the two sides of a comparison stand in turn.
    chosen = permutation(len(store), context.seed, "familiar")[:_ANSWERS]
    rows = [store[int(index)].tokens.tolist() for index in chosen]
    return scores(model, rows) if rows else None


def watcher_of(context: StageContext) -> Transformer | None:
    """The reward model that `rl.watch_model` names."""
    folder = context.parents.get("watch_model")
    return None if folder is None else reward_model(folder, context, "rl.watch_model")


def shared_scores(model: Transformer, rows: Sequence[Sequence[int]], group: Group) -> np.ndarray:
    """[rows] normalised scores, of which each process works out its share."""
    own = torch.from_numpy(scores(model, group.share(rows)))[:, None].unbind()
    return torch.cat(group.collect(own, len(rows), torch.double)).numpy()
