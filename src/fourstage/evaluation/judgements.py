"""How well a reward model finds what is said of held-out answers, in whole or step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fourstage.data.batch import Batch, Example
from fourstage.data.comparing import Elements
from fourstage.data.store import Store
from fourstage.evaluation.calibration import area_under_curve, calibration_error, reliability
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.resting import correlation
from fourstage.evaluation.scoring import alike, device_of, raw_scores
from fourstage.memory import in_halves
from fourstage.model.transformer import Transformer
from fourstage.precision import autocast


def held_out_judgements(
    model: Transformer, store: Store, objective: str, heads: Sequence[str] = ()
) -> Numbers:
    """What the rows of a held-out store say; nothing for plain pairs, which are told as text.

    Args:
        model: with a head for each of `heads`, or with one.
    """
    elements = Elements(store)
    if elements.are_plain_pairs:
        return Numbers()
    if objective == "process":
        return _of_steps(model, elements)
    rows = [store[index].tokens.tolist() for index in range(len(store))]
    scores = raw_scores(model, rows).reshape(len(rows), -1)
    if objective == "bradley_terry":
        return _of_rankings(scores, elements, heads)
    return _of_labels(scores, elements, objective, heads)


def _of_rankings(scores: np.ndarray, elements: Elements, heads: Sequence[str]) -> Numbers:
    """`ranking_accuracy`: share of a ranking's strict comparisons in order; also by head."""
    hits, counts, names = [], [], []
    for number in range(len(elements)):
        rows = list(elements.rows(number))
        told = [elements.store.row(row) for row in rows]
        name = told[0].get("head", "")
        column = list(heads).index(name) if heads else 0
        places = np.array([row["place"] for row in told])
        gap = scores[rows, column][:, None] - scores[rows, column][None, :]
        strict = places[:, None] < places[None, :]
        hits.append(float(((np.sign(gap[strict]) + 1) / 2).sum()))
        counts.append(float(strict.sum()))
        names.append(name)
    return Numbers().add_ratios("ranking_accuracy", hits, counts, names if heads else ())


def _of_labels(
    scores: np.ndarray, elements: Elements, objective: str, heads: Sequence[str]
) -> Numbers:
    """`label_correlation` of scores; of thumbs `label_accuracy`, `label_auc` and calibration."""
    numbers = Numbers()
    told = [elements.store.row(row)["labels"] for row in range(len(elements))]
    for column, name in enumerate(heads or ("",)):
        ending = f"/{name}" if name else ""
        rows = [index for index, labels in enumerate(told) if name in labels]
        labels, found = np.array([told[row][name] for row in rows]), scores[rows, column]
        if not rows:
            continue
        numbers.add(f"label_correlation{ending}", correlation(found, labels))
        if objective == "binary":
            numbers.update(_of_thumbs("label", found, labels, ending))
    return numbers


def _of_thumbs(stem: str, scores: np.ndarray, labels: np.ndarray, ending: str = "") -> Numbers:
    """Accuracy, area under the curve and calibration of logits [items] for labels in [0, 1]."""
    right = (np.sign(scores) * np.sign(labels - 0.5) + 1) / 2
    numbers = Numbers().add_means(f"{stem}_accuracy{ending}", right)
    good = labels > 0.5
    if good.any() and not good.all():
        numbers.add(f"{stem}_auc{ending}", area_under_curve(scores, good))
    predicted = 1 / (1 + np.exp(-scores))
    numbers.add(f"{stem}_calibration_error{ending}", calibration_error(predicted, labels))
    if not ending:
        numbers.extra["calibration"] = reliability(predicted, labels)
    return numbers


def _of_steps(model: Transformer, elements: Elements) -> Numbers:
    """`step_accuracy` and kin over all steps; `first_error_accuracy`: share of answers whose first
    wrong step is found, or that have none and none is found (Zheng et al., *ProcessBench*, 2024).
    """
    store = elements.store
    told = [store.row(row) for row in range(len(store))]
    found = cell_scores(model, list(store), [row["cells"] for row in told])
    labels = [np.array(row["labels"], np.float64) for row in told]
    numbers = _of_thumbs("step", np.concatenate(found), np.concatenate(labels))
    firsts = [
        first_error(scores) == first_error(given - 0.5)
        for scores, given in zip(found, labels, strict=True)
    ]
    return numbers.add_means("first_error_accuracy", firsts)


def first_error(scores: np.ndarray) -> int:
    """Index of the first step that is more likely wrong than right; -1 where there is none."""
    wrong = np.flatnonzero(scores < 0)
    return int(wrong[0]) if len(wrong) else -1


@torch.no_grad()
def cell_scores(
    model: Transformer, examples: Sequence[Example], cells: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Raw scores of each row at cells of its own, float64."""
    device = device_of(model)
    found: list[np.ndarray] = [np.zeros(0)] * len(examples)

    def work(portion: list[int]) -> None:
        batch = Batch.rows([examples[index] for index in portion]).to(device)
        with autocast(device):
            hidden = model(batch.tokens, batch.layout)
            scores = model.scores(hidden).double().cpu().numpy()
        for index, part in zip(portion, np.split(scores, np.cumsum(batch.lengths)), strict=False):
            found[index] = part[list(cells[index])]

    in_halves(alike([len(each.tokens) for each in examples], device), work)
    return found
