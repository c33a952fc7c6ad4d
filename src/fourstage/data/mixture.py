"""Mixtures: which share of a run's tokens each source has, and how often that reads the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourstage.errors import InputError, nearest

_NO_SHARE = 1e-12


@dataclass(frozen=True)
class Phase:
    """Shares of the sources, which sum to 1, until this part of the run is done."""

    until: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Mix:
    """What is drawn from each source over a run.

    Attributes:
        tokens: tokens an epoch of each source has, by name; phases list shares in this order.
        run_tokens: tokens of the run, where they are known.
    """

    tokens: dict[str, int]
    phases: tuple[Phase, ...]
    run_tokens: int | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Share of each source in the tokens of the whole run."""
        return dict(zip(self.tokens, self.expected(1.0, 1.0).tolist(), strict=True))

    def expected(self, drawn: float, run_tokens: float) -> np.ndarray:
        """[sources] tokens of each when `drawn` of the run's are: the integral of the shares.

        After the end of the run its last phase goes on.
        """
        starts = [0.0, *(phase.until * run_tokens for phase in self.phases[:-1])]
        ends = [*starts[1:], max(drawn, starts[-1])]
        passed = [max(0.0, min(drawn, b) - a) for a, b in zip(starts, ends, strict=True)]
        return np.array(passed) @ np.array([phase.shares for phase in self.phases])

    def table(self, sizes: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """A row a source, as table 1 of Touvron et al., *LLaMA*, 2023, has them.

        Args:
            sizes: bytes of each source on disk.

        Returns:
            `source`, `share` of the run's tokens, `epochs` and `tokens` drawn in the run (None
            where its length is not known), and `bytes` where they are given.
        """
        rows = []
        for name, share in self.shares.items():
            drawn = None if self.run_tokens is None else share * self.run_tokens
            held = self.tokens[name]
            epochs = None if drawn is None else drawn / held if held else 0.0
            row = {"source": name, "share": share, "epochs": epochs, "tokens": drawn}
            rows.append(row if sizes is None else row | {"bytes": sizes.get(name)})
        return rows


def shares(
    tokens: Mapping[str, int],
    weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    run_tokens: int | None = None,
    max_epochs: Mapping[str, float] | float | None = None,
    phases: Sequence[Mapping[str, Any]] = (),
) -> Mix:
    """The mixture of a run.

    A source is drawn in proportion to its weight, or without weights to tokens ** (1 / temperature)
    (at 1 all sources are read at the same pace; XLM-R, Conneau et al., 2020, has 1 / 0.3).
    What would go beyond a cap on epochs goes to the other sources in proportion. Caps bind the
    earlier phases first: the last ones are for the best data.

    Args:
        tokens: tokens an epoch of each source has.
        weights: of every source, of any sum.
        run_tokens: tokens of the run; caps need them.
        max_epochs: most epochs of each source, or of any.
        phases: `{"until": share of the run, "weights": {...}}` in order, the last until 1; a source
            that a phase leaves out is not drawn in it.

    Raises:
        InputError: weights that miss a source, name an unknown one or are all zero; a source to
            draw from that is empty; phases that do not rise to 1; caps that cannot fill the run.
    """
    check_names(tokens, weights, max_epochs, phases)
    sizes = np.array([tokens[name] for name in tokens], np.float64)
    if phases:
        parts = [(float(p["until"]), _listed(tokens, p["weights"])) for p in phases]
    else:
        natural = (sizes / max(sizes.max(initial=0), 1)) ** (1 / temperature)
        parts = [(1.0, _listed(tokens, weights) if weights else natural)]
    _check_parts(list(tokens), sizes, parts)
    left = _capacity(tokens, max_epochs, run_tokens)
    whole = 1.0 if run_tokens is None else float(run_tokens)
    filled: list[Phase] = []
    starts = [0.0, *(until for until, _ in parts)]
    for (until, proportions), start in zip(parts[::-1], starts[-2::-1], strict=True):
        cells = (until - start) * whole
        drawn = _fill(proportions, cells, left)
        left = np.maximum(left - drawn, 0)
        # What rounding leaves of a source whose cap is used up is no share.
        drawn[drawn < _NO_SHARE * cells] = 0
        filled.append(Phase(until, tuple((drawn / drawn.sum()).tolist())))
    return Mix(dict(tokens), tuple(filled[::-1]), run_tokens)


def with_share(mix: Mix, name: str, tokens: int, share: float) -> Mix:
    """The mix with one more source, of this share of the tokens at any time of the run."""
    phases = tuple(
        Phase(phase.until, (*(each * (1 - share) for each in phase.shares), share))
        for phase in mix.phases
    )
    run_tokens = mix.run_tokens and round(mix.run_tokens / (1 - share))
    return Mix({**mix.tokens, name: tokens}, phases, run_tokens)


def check_names(
    tokens: Mapping[str, int],
    weights: Mapping[str, float] | None,
    max_epochs: Mapping[str, float] | float | None,
    phases: Sequence[Mapping[str, Any]],
) -> None:
    """Checks that every name is a source's, and that every source has a weight where one has.

    Raises:
        InputError: they are not.
    """
    places = {"data.mixture.weights": weights or {}}
    places |= {f"data.mixture.phases[{i}].weights": p["weights"] for i, p in enumerate(phases)}
    given = {name for weights in places.values() for name in weights}
    if isinstance(max_epochs, Mapping):
        places["data.mixture.max_epochs"] = max_epochs
    for place, named in places.items():
        for name in named:
            if name not in tokens:
                raise InputError(
                    f"{place}: there is no source {name!r}{nearest(name, tokens)}; the sources are "
                    f"{', '.join(tokens)}"
                )
    missing = [name for name in tokens if given and name not in given]
    if missing:
        raise InputError(
            f"data.mixture: {', '.join(missing)} without a weight while others have one; give each "
            "source a weight, 0 for one that is not to be read"
        )


def _check_parts(
    names: list[str], sizes: np.ndarray, parts: list[tuple[float, np.ndarray]]
) -> None:
    ends = [until for until, _ in parts]
    if ends != sorted(set(ends)) or ends[0] <= 0 or ends[-1] != 1:
        raise InputError(
            f"data.mixture.phases end at {', '.join(f'{end:g}' for end in ends)}: write rising "
            "numbers of which the last is 1"
        )
    for _, proportions in parts:
        if not (np.isfinite(proportions).all() and (proportions >= 0).all() and proportions.any()):
            raise InputError(
                "data.mixture.weights: write numbers of 0 or more, of which one is above 0"
            )
        for name, size, weight in zip(names, sizes, proportions, strict=True):
            if weight > 0 and size <= 0:
                raise InputError(
                    f"data.mixture.weights: {name} has no text left to draw from; give it weight 0 "
                    "or other files"
                )


def _listed(names: Mapping[str, Any], weights: Mapping[str, float]) -> np.ndarray:
    return np.array([float(weights.get(name, 0.0)) for name in names])


def _capacity(
    tokens: Mapping[str, int], max_epochs: Mapping[str, float] | float | None, run: int | None
) -> np.ndarray:
    """[sources] most tokens that may be drawn of each."""
    if max_epochs is None:
        max_epochs = {}
    elif run is None:
        raise InputError(
            "data.mixture.max_epochs: needs the length of the run; write pretrain.tokens"
        )
    elif not isinstance(max_epochs, Mapping):
        max_epochs = dict.fromkeys(tokens, max_epochs)
    most = [max_epochs[name] * n if name in max_epochs else np.inf for name, n in tokens.items()]
    return np.array(most, np.float64)


def _fill(weights: np.ndarray, cells: float, most: np.ndarray) -> np.ndarray:
    """Parts of `cells` in proportion to `weights`, none beyond its `most`: water-filling.

    Raises:
        InputError: the sources that have a weight hold too little.
    """
    drawn = np.zeros(len(weights))
    is_open = weights > 0
    while is_open.any():
        rest = cells - drawn[~is_open].sum()
        drawn[is_open] = rest * weights[is_open] / weights[is_open].sum()
        over = is_open & (drawn > most)
        if not over.any():
            return drawn
        drawn[over] = most[over]
        is_open &= ~over
    missing = cells - drawn.sum()
    if missing > 1e-9 * cells:
        raise InputError(
            f"data.mixture.max_epochs: {missing:,.0f} of {cells:,.0f} tokens are missing: the "
            f"sources may give only {drawn.sum():,.0f}; raise max_epochs, add data, or train on "
            "fewer tokens"
        )
    return drawn
