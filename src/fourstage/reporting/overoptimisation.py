"""Figures of a study of over-optimisation, from what its study.json holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fourstage.reporting.charts import Chart, Point, Reference, Series
from fourstage.reporting.figures import panels
from fourstage.reporting.html import Markup, join, table, tag
from fourstage.reporting.numbers import figures, is_number

# Of study.json.
FORMAT = 1
_COLOURS = 6
# Points of a noisy line of RL that are drawn.
_BINS = 40
_BOUND = "KL to the SFT model, at most (nats a response)"
_KL = "KL to the SFT model (nats a response)"


def best_of_n_figure(study: dict[str, Any]) -> Markup | None:
    """Gold and proxy of the best of n over KL, a line a reward model, the fitted laws dashed."""
    found = _entries(study, "best_of_n")
    initial = _initial(study)
    return panels(
        [
            Chart(
                _with_laws(found, [_curve(each, "gold") for each in found]),
                _BOUND,
                "gold reward",
                "Gold reward of the best of n responses over KL",
                initial,
            ),
            Chart(
                [
                    Series(each["name"], _curve(each, "proxy"), place % _COLOURS, "dots")
                    for place, each in enumerate(found)
                ],
                _BOUND,
                "proxy reward",
                "Proxy reward of the best of n responses over KL",
            ),
        ],
        "Best of n responses of the SFT model by the proxy, n doubling from dot to dot: what it is "
        "truly worth (left) and what the reward model believes (right). Dashed: "
        "R = d (α − β d), d = √KL. The KL is a bound, log n − (n − 1)/n.",
    )


def rl_figure(study: dict[str, Any]) -> Markup | None:
    """Gold and proxy over KL as RL went on, a line a policy, their law dashed."""
    found = _entries(study, "rl")
    golds = [_went(each, 2, "gold") for each in found]
    series = [
        Series(each["name"], points, place % _COLOURS, "dots")
        for place, (each, points) in enumerate(zip(found, golds, strict=True))
    ]
    law = study.get("rl_fit")
    if isinstance(law, dict) and law.get("curve"):
        series.append(Series("law", _pairs(law["curve"]), "grey", "dashed"))
    return panels(
        [
            Chart(
                series,
                _KL,
                "gold reward",
                "Gold reward over KL as reinforcement learning goes on",
                _initial(study),
            ),
            Chart(
                [
                    Series(each["name"], _went(each, 1, "proxy"), place % _COLOURS, "dots")
                    for place, each in enumerate(found)
                ],
                _KL,
                "proxy reward",
                "Proxy reward over KL as reinforcement learning goes on",
            ),
        ],
        "Reinforcement learning against the proxy, a line a policy: what it is truly worth (left) "
        "and what it is paid (right). Dashed: R = d (α − β log d), d = √KL, through all that the "
        "run's own reward model pays.",
    )


LAW_HEADER = (
    "law of",
    "points",
    "KL up to",
    "α",
    "β",
    "gold is highest at KL",
    "gain",
    "missed by",
)
SHORT_HEADER = ("law of", "KL to", "α", "β", "peak KL", "gain", "missed by")
# What a law may differ from 0 by rounding.
_ROUNDING = 12


def _laws(study: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Whose law, and what was found of it, fitted or not."""
    named = [(f"best of n, {each['name']}", each) for each in _entries(study, "best_of_n")]
    rl = _entries(study, "rl")
    named += [(f"RL, {each['name']}", each) for each in rl]
    if len(rl) != 1 and isinstance(study.get("rl_fit"), dict):
        named.append(("RL, all", study["rl_fit"]))
    return named


def short_rows(study: dict[str, Any]) -> list[list[Any]]:
    """A row a law that was fitted, for a terminal."""
    return [
        [
            name,
            figures(law["reached"], 2),
            _number(law["alpha"]),
            _number(law["beta"]),
            _peak(law),
            _gain(law),
            _number(law["residual"]),
        ]
        for name, told in _laws(study)
        if (law := told.get("fit"))
    ]


def unfitted(study: dict[str, Any]) -> list[str]:
    """A line for each law that was not fitted, and why."""
    return [
        f"{name}: not fitted, {told.get('unfitted')}"
        for name, told in _laws(study)
        if not told.get("fit")
    ]


def _number(value: float) -> str:
    return figures(round(value, _ROUNDING) + 0.0, 3)


def _peak(law: dict[str, Any]) -> str:
    """Where gold is highest; beyond what was measured a law is a guess."""
    peak = law["peak_kl"]
    if peak is None:
        return "never"
    return "beyond" if _is_beyond(law) else figures(peak, 2)


def _is_beyond(law: dict[str, Any]) -> bool:
    return law["peak_kl"] is not None and law["peak_kl"] > law["reached"]


def _gain(law: dict[str, Any]) -> str:
    return "" if law["peak_kl"] is None or _is_beyond(law) else _number(law["peak_gain"])


def _with_interval(law: dict[str, Any], name: str) -> str:
    pair = law["intervals"].get(name)
    interval = f" [{_number(pair[0])}, {_number(pair[1])}]" if pair else ""
    return f"{_number(law[name])}{interval}"


def law_table(study: dict[str, Any]) -> Markup | None:
    """The laws with their intervals, and below them those that were not fitted."""
    rows = [
        [
            name,
            figures(law["points"]),
            figures(law["reached"], 2),
            _with_interval(law, "alpha"),
            _with_interval(law, "beta"),
            f"{figures(law['peak_kl'], 1)} (beyond)" if _is_beyond(law) else _peak(law),
            _gain(law),
            _number(law["residual"]),
        ]
        for name, told in _laws(study)
        if (law := told.get("fit"))
    ]
    lines = [tag("p", line, class_="soft") for line in unfitted(study)]
    if not rows:
        return join(lines) if lines else None
    caption = "The laws, by least squares, gold as gain over the SFT model."
    return join(table(list(LAW_HEADER), rows, caption=caption, class_="numbers"), lines)


def study_figures(study: dict[str, Any]) -> list[Markup | None]:
    """All that a page shows of a study; nothing of none, or of one in another form."""
    if study.get("format") != FORMAT:
        return []
    return [best_of_n_figure(study), rl_figure(study), law_table(study)]


def study_of(study: dict[str, Any], parents: dict[str, Any]) -> Markup | list[Markup | None]:
    """The figures of a run's study; a line instead where the run has other models by now.

    Args:
        parents: role ("from", "reward_model") -> hash of what the rl stage was made from.
    """
    told = study.get("models")
    if isinstance(told, dict) and any(parents.get(role, told[role]) != told[role] for role in told):
        return tag(
            "p",
            "The study of over-optimisation in study/ is of other models than this run has now: ",
            "fourstage study overoptimisation repeats it.",
            class_="notice",
        )
    return study_figures(study)


def _entries(study: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [each for each in study.get(name) or [] if isinstance(each, dict)]


def _initial(study: dict[str, Any]) -> list[Reference]:
    told = (study.get("initial") or {}).get("gold")
    return [Reference("SFT", told[0])] if told else []


def _curve(told: dict[str, Any], name: str) -> list[Point]:
    values = [each[0] for each in told[name]]
    return list(zip(told["kl"], values, strict=True))


def _with_laws(found: Sequence[dict[str, Any]], lines: Sequence[list[Point]]) -> list[Series]:
    series = []
    for place, (told, points) in enumerate(zip(found, lines, strict=True)):
        series.append(Series(told["name"], points, place % _COLOURS, "dots"))
        series.append(Series("", _pairs(told.get("curve") or []), place % _COLOURS, "dashed"))
    return series


def _pairs(points: Sequence[Sequence[float]]) -> list[Point]:
    return [(float(x), float(y)) for x, y in points]


def _went(told: dict[str, Any], place: int, name: str) -> list[Point]:
    """A number over KL as training went on, in order of KL; without rows that have it, the end."""
    points = sorted(
        (float(each[0]), float(each[place]))
        for each in told["points"]
        if is_number(each[0]) and is_number(each[place])
    )
    if not points:
        return [(told["end"]["kl"][0], told["end"][name][0])]
    return _in_bins(points)


def _in_bins(points: list[Point]) -> list[Point]:
    """Means of neighbours, so that a line of thousands of noisy points can be read."""
    size = -(-len(points) // _BINS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts
    ]
