"""`fourstage study overoptimisation`: what more of the proxy does to gold, by best-of-n and by RL.

After Gao, Schulman and Hilton, *Scaling Laws for Reward Model Overoptimization*, 2022. Each part is
kept as it is finished; the same command goes on where it stopped, and a wider one adds to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.errors import InputError
from fourstage.evaluation.estimates import RESAMPLES, mean_of
from fourstage.files import write_json, write_text
from fourstage.pipeline.lineage import model_hash
from fourstage.pipeline.lock import locked
from fourstage.randomness import numpy_generator
from fourstage.recipe.preference import learns_otherwise
from fourstage.reporting.overoptimisation import FORMAT
from fourstage.rewards.building import own_files
from fourstage.study import forks
from fourstage.study.asked import Asked
from fourstage.study.bestofn import estimated_kl, kl_bound, mean_of_best, powers_of_two
from fourstage.study.laws import Fit, Law, TooFewPoints, fit, with_intervals
from fourstage.study.policies import Point, measured_end, read_iterations
from fourstage.study.samples import Drawn, draw, scored
from fourstage.study.subject import Say, Subject, called, check_judges, open_subject

NAME, PAGE = "study.json", "study.html"
# Points of a fitted law that is drawn.
_CURVE = 60


@dataclass(frozen=True)
class Reward:
    """A reward model that best-of-n is tried by; `comparisons` where it is known."""

    name: str
    folder: Path
    comparisons: int | None = None


@dataclass(frozen=True)
class Policy:
    """A finished rl stage, and the reward model that paid it."""

    name: str
    stage: Path
    coefficient: float | None
    reward: Path


def study(run: Path, out: Path | None, asked: Asked, say: Say = print) -> dict[str, Any]:
    """The study, as study.json holds it; writes that and the page.

    Args:
        out: its folder; else `study` in the run's.

    Raises:
        InputError: the run is not finished, has no gold, or another process studies it.
        MachineError, Interrupted: as any run; what was finished stays.
    """
    folder = out or run / "study"
    with locked(folder):
        subject = open_subject(run, folder, asked.gold, asked.prompts, asked.device, say)
        if asked.coefficients:
            forks.check_coefficients(subject, "--kl")
        _check_each(subject, asked)
        # Refused before anything is spent.
        check_judges(subject, asked.rivals)
        recipes = {count: forks.reward_recipe(subject, count) for count in asked.comparisons}
        found = {
            "format": FORMAT,
            "run": subject.recipe.name,
            "models": {
                "from": model_hash(subject.sft),
                "reward_model": model_hash(subject.reward),
            },
            "asked": asked.to_json(),
            "gold": subject.gold_words,
            "temperature": subject.recipe.rl.temperature,
            "prompts": len(subject.tasks),
            "samples": asked.samples,
            "best_of_n": [],
            "rl": [],
            "rl_fit": None,
        }
        drawn = draw(subject, folder, asked.samples, say)
        gold = scored(
            folder / "scores" / "gold.json", subject.gold_key, subject.tasks, drawn, subject.gold()
        )
        found["initial"] = {"gold": _mean(gold.mean(axis=1))}
        rewards = _rewards(subject, folder, asked, recipes, say)
        for reward in rewards:
            found["best_of_n"].append(_best_of_n(subject, folder, reward, drawn, gold, say))
            _write(folder, found)
        _add_rl(subject, folder, _policies(subject, folder, asked, rewards, say), found, say)
        _write(folder, found)
    return found


def _write(folder: Path, found: dict[str, Any]) -> None:
    from fourstage.study.page import page

    write_json(folder / NAME, found)
    write_text(folder / PAGE, page(found))


def _mean(values: np.ndarray) -> list[float]:
    told = mean_of(values)
    return [told.value, told.low, told.high]


# Best of n


def _rewards(
    subject: Subject, folder: Path, asked: Asked, recipes: dict[int, Any], say: Say
) -> list[Reward]:
    """The run's, those of other numbers of comparisons, and those named; trains what is missing."""
    own = None if subject.recipe.rl.reward_model else subject.recipe.data.comparisons
    found = [Reward(f"{own:,} pairs" if own else "the run's", subject.reward, own)]
    for count, recipe in recipes.items():
        if count == own:
            continue
        stage = forks.train(recipe, folder / "reward" / f"comparisons-{count}", "reward", say)
        found.append(Reward(f"{count:,} pairs", stage / "model", count))
    found += [Reward(called(rival), rival) for rival in asked.rivals]
    return found


def _best_of_n(
    subject: Subject, folder: Path, reward: Reward, drawn: Drawn, gold: np.ndarray, say: Say
) -> dict[str, Any]:
    """The curves of one reward model, and the law that its gold follows."""
    said = model_hash(reward.folder)
    path = folder / "scores" / f"reward-{said[:12]}.json"
    section = subject.recipe.to_dict()["rl"]
    pays = ("rewards", "missing_end_penalty", "step_rewards")
    key = [said, *(section[name] for name in pays), own_files(subject.recipe.rl.rewards)]
    with subject.proxy(reward.folder, say) as score:
        proxy = scored(path, key, subject.tasks, drawn, score)
    sizes = powers_of_two(proxy.shape[1])
    golds = np.stack([mean_of_best(proxy, gold, n) for n in sizes], axis=1)
    proxies = np.stack([mean_of_best(proxy, proxy, n) for n in sizes], axis=1)
    bounds = [kl_bound(n) for n in sizes]
    say(f"study: best of {sizes[-1]} by {reward.name}: gold {golds[:, -1].mean():.3f}")
    return {
        "name": reward.name,
        "comparisons": reward.comparisons,
        "n": sizes,
        "kl": bounds,
        "kl_estimated": [float(estimated_kl(proxy, n).mean()) for n in sizes],
        "gold": [_mean(golds[:, place]) for place in range(len(sizes))],
        "proxy": [_mean(proxies[:, place]) for place in range(len(sizes))],
        **_fitted_to_prompts(bounds, golds),
    }


def _fitted_to_prompts(kl: Sequence[float], golds: np.ndarray) -> dict[str, Any]:
    """The law of gains over n = 1, [prompts, sizes], with intervals over prompts."""
    gains = golds - golds[:, :1]
    told = _fitted("best_of_n", list(zip(kl, gains.mean(axis=0), strict=True)), golds[:, 0].mean())
    if told["fit"] is not None:
        rows = numpy_generator(0, "bootstrap", "law", len(gains)).integers(
            0, len(gains), (RESAMPLES, len(gains))
        )
        found = with_intervals(Fit.from_json(told["fit"]), kl, gains[rows].mean(axis=1))
        told["fit"] = found.to_json()
    return told


def _fitted(law: Law, points: Sequence[tuple[float, float]], initial: float) -> dict[str, Any]:
    """`fit`, and `curve` to draw it by; or `unfitted`, why there is none."""
    try:
        found = fit(law, points)
    except TooFewPoints as fault:
        return {"fit": None, "unfitted": str(fault), "curve": []}
    # Evenly in d, in which the laws are smooth.
    distances = [found.reached * (place / _CURVE) ** 2 for place in range(_CURVE + 1)]
    curve = [[kl, initial + found.gain(kl)] for kl in distances]
    return {"fit": found.to_json(), "unfitted": None, "curve": curve}


# Reinforcement learning


def _add_rl(
    subject: Subject, folder: Path, policies: Iterable[Policy], found: dict[str, Any], say: Say
) -> None:
    """The curves of each policy, and the law that those follow which the run's own reward model
    pays."""
    initial = found["initial"]["gold"][0]
    everything: list[tuple[float, float]] = []
    for policy in policies:
        path = folder / "scores" / f"policy-{re.sub(r'[^a-zA-Z0-9.]+', '-', policy.name)}.json"
        end = measured_end(subject, policy.stage, path, policy.reward, say)
        points = read_iterations(policy.stage)
        gains = _gains(subject, points, initial)
        if policy.reward == subject.reward:
            everything += gains or [(end["kl"][0], end["gold"][0] - initial)]
        found["rl"].append(
            {
                "name": policy.name,
                "coefficient": policy.coefficient,
                "points": [point.to_json() for point in points],
                "end": end,
                **_fitted("rl", gains, initial),
            }
        )
        _write(folder, found)
    if found["rl"]:
        found["rl_fit"] = _fitted("rl", everything, initial)


def _gains(subject: Subject, points: Sequence[Point], initial: float) -> list[tuple[float, float]]:
    """Of the iterations whose gold is the study's; what a checker said is no gold of a model."""
    if subject.gold_folder is not None:
        return []
    return [(each.kl, each.gold - initial) for each in points if each.gold is not None]


def _own_coefficient(subject: Subject) -> float | None:
    """That of the run, where it has one that stays as it is."""
    section = subject.recipe.rl
    is_fixed = not section.kl_target and not learns_otherwise(section)
    return section.kl_coefficient if is_fixed else None


def _check_each(subject: Subject, asked: Asked) -> None:
    """Refuses RL by each reward model where there is one alone, or no coefficient to train at.

    Raises:
        InputError: what to write instead.
    """
    if not asked.by_each:
        return
    forks.check_coefficients(subject, "--rl-by-each")
    if not asked.comparisons and not asked.rivals:
        raise InputError(
            "--rl-by-each: the run's own reward model is the only one; add --comparisons "
            "1000,4000 or --reward-model DIR"
        )
    if not asked.coefficients and not _own_coefficient(subject):
        raise InputError(
            f"--rl-by-each: {subject.run} has no KL coefficient that stays as it is; add --kl 0.05"
        )


def _policies(
    subject: Subject, folder: Path, asked: Asked, rewards: Sequence[Reward], say: Say
) -> list[Policy]:
    """The run's own policy, where it has one, and one for each coefficient; with `by_each` those
    of the other reward models too. Trains what is missing.

    Raises:
        InputError, MachineError, Interrupted: as any run.
    """
    section, own = subject.recipe.rl, _own_coefficient(subject)
    finished = (subject.run / "rl" / "results.json").is_file()
    found = []
    if finished:
        name = f"KL {own:g}" if own is not None else section.algorithm
        found.append(Policy(name, subject.run / "rl", own, subject.reward))
    for coefficient in asked.coefficients:
        if finished and coefficient == own:
            continue
        recipe = forks.rl_recipe(subject, coefficient)
        stage = forks.train(recipe, folder / "rl" / f"kl-{coefficient:g}", "rl", say)
        found.append(Policy(f"KL {coefficient:g}", stage, coefficient, subject.reward))
    if asked.by_each:
        coefficients = dict.fromkeys([*([own] if own else []), *asked.coefficients])
        for reward in rewards:
            if reward.folder == subject.reward:
                continue
            mark = reward.comparisons or model_hash(reward.folder)[:8]
            for coefficient in coefficients:
                recipe = forks.rl_recipe(subject, coefficient, reward.folder)
                stage = forks.train(recipe, folder / "rl" / f"kl-{coefficient:g}-{mark}", "rl", say)
                name = f"KL {coefficient:g}, {reward.name}"
                found.append(Policy(name, stage, coefficient, reward.folder))
    return sorted(found, key=lambda policy: -(policy.coefficient or 0))
