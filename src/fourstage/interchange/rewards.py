"""Reward models of several heads or members as folders; what opens one head opens these too.

model/                    the weighted sum of the heads, or the first member: one label
  heads.safetensors       the heads by themselves, `score.weight` [heads, width]
  config.json             + reward_heads {name: {weight, mean, std}}
                          + reward_ensemble {members, caution, mean, std}
                          + reward_objective, of one that judges steps
  members/1, ...          the other members, each such a folder
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourstage.errors import InputError
from fourstage.interchange.folder import read_config
from fourstage.interchange.weights import read_tensors, write_weights
from fourstage.model.ensemble import Ensemble
from fourstage.model.heads import Heads

HEADS = "heads.safetensors"
_MEMBERS, LIKELIHOOD = "members", "likelihood"
# How much the likelihoods count: `evaluation.likelihood.Opinion`.
LIKELIHOOD_NUMBERS = ("weight", "floor", "ceiling")
# What config.json says of a reward model whose scores at the ends of steps are log-odds.
STEPWISE = {"reward_objective": "process"}


def member_folder(folder: Path, number: int) -> Path:
    """Where member `number` of an ensemble lies; the first is the folder itself."""
    return folder / _MEMBERS / str(number) if number else folder


def heads_config(heads: Heads) -> dict[str, Any]:
    """What config.json says of the heads."""
    told = zip(heads.weights.items(), heads.means, heads.stds, strict=True)
    return {
        "reward_heads": {
            name: {"weight": weight, "mean": mean, "std": std} for (name, weight), mean, std in told
        }
    }


def ensemble_config(ensemble: Ensemble) -> dict[str, Any]:
    """What config.json of the first member says of all."""
    return {
        "reward_ensemble": {
            "members": [f"{_MEMBERS}/{n}" for n in range(1, len(ensemble.members))],
            "caution": ensemble.caution,
            "mean": ensemble.reward_mean,
            "std": ensemble.reward_std,
        }
    }


def write_heads(folder: Path, heads: Heads) -> None:
    """Writes the heads beside a model; `heads_config` belongs into its config.json."""
    write_weights(folder / HEADS, {"score.weight": heads.rows.detach().cpu().contiguous()})


def read_heads(folder: Path) -> Heads | None:
    """The heads of a reward model; None where it has but one.

    Raises:
        InputError: config.json tells of heads, and their weights are missing or of another shape.
    """
    told = read_config(folder).get("reward_heads")
    if not told:
        return None
    rows = read_tensors(Path(folder) / HEADS).get("score.weight")
    if rows is None or rows.dim() != 2 or len(rows) != len(told):
        raise InputError(
            f"{Path(folder) / HEADS} does not hold the {len(told)} heads that config.json names: "
            "save or copy it again"
        )
    column = {
        key: [float(head[key]) for head in told.values()] for key in ("weight", "mean", "std")
    }
    weights = dict(zip(told, column["weight"], strict=True))
    return Heads(weights, rows, tuple(column["mean"]), tuple(column["std"]))


def members_of(folder: Path) -> list[Path]:
    """The folders of an ensemble's members, the first one first; [] of a single model.

    Raises:
        InputError: a member is missing, or named outside the folder.
    """
    folder = Path(folder)
    told = read_config(folder).get("reward_ensemble")
    if not told:
        return []
    names: Sequence[str] = told["members"]
    for name in names:
        if not Path(name).parts[:1] == (_MEMBERS,) or ".." in Path(name).parts:
            raise InputError(f"{folder}/config.json names the member {name!r}, outside its folder")
        if not (folder / name).is_dir():
            raise InputError(f"{folder} lacks {name}, which its config.json names: copy it there")
    return [folder, *(folder / name for name in names)]


def judges_steps(folder: Path) -> bool:
    """Whether a reward model has learned to judge each step of an answer."""
    return STEPWISE.items() <= read_config(folder).items()


def as_ensemble(folder: Path, members: Sequence[Any]) -> Ensemble:
    """The ensemble of opened members, with what the folder's config.json says of all."""
    told = read_config(folder)["reward_ensemble"]
    ensemble = Ensemble(members, float(told["caution"]))
    ensemble.reward_mean, ensemble.reward_std = float(told["mean"]), float(told["std"])
    return ensemble


def likelihood_of(folder: Path) -> tuple[Path, dict[str, float]] | None:
    """The folder of the chat model whose likelihoods count, and how; None where none does.

    Raises:
        InputError: it is missing.
    """
    told = read_config(folder).get("reward_likelihood")
    if not told:
        return None
    language = Path(folder) / LIKELIHOOD
    if not language.is_dir():
        raise InputError(
            f"{folder} lacks {LIKELIHOOD}, which its config.json asks for: copy it there"
        )
    return language, {key: float(told[key]) for key in (*LIKELIHOOD_NUMBERS, "mean", "std")}
