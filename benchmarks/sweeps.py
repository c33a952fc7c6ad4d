"""Learning-rate sweeps at three sizes on the embedded world: what the rule loses against the best.

    OMP_NUM_THREADS=1 python benchmarks/sweeps.py [--out runs/sweeps] [--sizes 50k 200k 800k]
        [--tokens 1M 4M 4M] [--rates 5] [--seed 0]

Every size is a range test (`fourstage tune`) of whole short runs around the rule's rate, a factor
of four each way, with optimiser, batch, warm-up and schedule by the rules for its tokens. Lengths
are Chinchilla's 20 tokens a parameter for the smaller two and 5 for the largest, so that all of it
takes about 50 minutes on one thread; shorter runs end before or after a model finds how to look
back by content, by chance, and say little of the rate. Stopped and run again, it goes on. The rule
holds at a size where its held-out loss is at most 1% above the best of the sweep's trials.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from fourstage.devices import resolve_device
from fourstage.files import write_json, write_text
from fourstage.parallel.group import Group
from fourstage.recipe import Recipe, recipe_from
from fourstage.recipe.numbers import parse_number
from fourstage.reporting.charts import Chart, Reference, Series
from fourstage.reporting.numbers import compact
from fourstage.reporting.tables import print_table
from fourstage.tuning.page import drawing
from fourstage.tuning.rangetest import Asked, Tuned, range_test

# What the rule may lose, as a share of the best loss.
MOST = 0.01


@dataclass(frozen=True)
class Swept:
    """One size.

    Attributes:
        rule, best: rates. rule_loss, best_loss: of their trials.
    """

    size: int
    tokens: int
    rule: float
    best: float
    rule_loss: float | None
    best_loss: float
    points: list[tuple[float, float]]

    @classmethod
    def of(cls, size: int, tuned: Tuned, rule: float) -> Swept:
        """The trials of a size.

        Raises:
            RuntimeError: every one diverged.
        """
        points = sorted((o.setting.rate, o.loss) for o in tuned.outcomes if o.loss is not None)
        if not points:
            raise RuntimeError(f"every trial of {size:,} parameters diverged")
        best, lowest = min(points, key=lambda point: point[1])
        own = next((loss for rate, loss in points if rate == rule), None)
        return cls(size, tuned.amount, rule, best, own, lowest, points)

    @property
    def loses(self) -> float:
        """Share of the best loss by which the rule's is above it."""
        return float("inf") if self.rule_loss is None else self.rule_loss / self.best_loss - 1


def recipe_of(size: int, tokens: int, seed: int) -> Recipe:
    """A model of the size on as much of the embedded world as it reads; the rest by the rules."""
    return recipe_from(
        {
            "name": f"{compact(size)}",
            "seed": seed,
            "data": {"pretrain": "world"},
            "model": {"params": size},
            "pretrain": {"tokens": tokens},
        }
    )


def sweep_of(size: int, tokens: int, rates: int, seed: int, out: Path) -> Swept:
    recipe = recipe_of(size, tokens, seed)
    asked = Asked("pretrain", rates=rates, batches=1, amount=tokens)
    group = Group(device=resolve_device(recipe.device))
    tuned = range_test(recipe, out / f"{size}-{tokens}", asked, group)
    if tuned.proposal is None:
        raise RuntimeError(f"every trial of {size:,} parameters diverged")
    return Swept.of(size, tuned, tuned.proposal.centre.rate)


def chart(swept: list[Swept]) -> Chart:
    """What each rate loses against the best of its size, over the rate as a multiple of the rule's.

    The axis ends at five times what may be lost: what is far above would flatten the rest.
    """
    series = [
        Series(
            f"{compact(each.size)} parameters",
            [(rate / each.rule, 100 * (loss / each.best_loss - 1)) for rate, loss in each.points],
            colour,
            "dots",
        )
        for colour, each in enumerate(swept)
    ]
    highest = 100 * 5 * MOST
    series.append(Series("", [(1.0, 0.0), (1.0, highest)], "grey", "dashed"))
    return Chart(
        series,
        "peak learning rate over the rule's",
        "held-out loss above the best, %",
        "Loss above the best of each sweep over the learning rate as a multiple of the rule's",
        references=[Reference("1%", 100 * MOST)],
        x_log=True,
        y_range=(0.0, highest),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/sweeps"))
    parser.add_argument("--sizes", nargs="+", default=["50k", "200k", "800k"])
    parser.add_argument("--tokens", nargs="+", default=["1M", "4M", "4M"])
    parser.add_argument("--rates", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if len(options.sizes) != len(options.tokens):
        parser.error("--tokens needs as many numbers as --sizes")
    swept = [
        sweep_of(round(parse_number(a)), round(parse_number(b)), options.rates, options.seed,
                 options.out)
        for a, b in zip(options.sizes, options.tokens, strict=True)
    ]  # fmt: skip
    rows = [
        [
            compact(each.size),
            compact(each.tokens),
            f"{each.rule:.3g}",
            each.rule_loss and f"{each.rule_loss:.4f}",
            f"{each.best:.3g}",
            f"{each.best_loss:.4f}",
            f"{each.loses:.2%}",
            "yes" if each.loses <= MOST else "no",
        ]
        for each in swept
    ]
    header = ["params", "tokens", "rule", "its loss", "best", "its loss", "rule loses", "within 1%"]
    print_table(header, rows)
    write_text(options.out / "sweeps.svg", drawing(chart(swept)))
    write_json(options.out / "sweeps.json", [vars(each) for each in swept])
    print(options.out / "sweeps.svg")


if __name__ == "__main__":
    main()
