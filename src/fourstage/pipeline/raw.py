"""Raw data by content: what a stage's data are made from, and whether it changed under a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fourstage.data.corpus import corpus_inputs, text_files
from fourstage.data.judging import judged_inputs
from fourstage.data.reading import RawFile, find_files, raw_hashes
from fourstage.data.replay import replay_inputs
from fourstage.errors import InputError
from fourstage.files import sha256_json
from fourstage.recipe import PARTS, Recipe
from fourstage.recipe.data import REPLAY
from fourstage.recipe.preference import reads_comparisons, takes_judgements

# stage -> the field of `data` that says how much of it there is, where it is not read from files.
_AMOUNTS = {"sft": "demonstrations", "reward": "comparisons", "rl": "rl_prompts"}

Hashes = dict[str, dict[str, str]]


def hashes_of(recipe: Recipe, stages: Iterable[str]) -> Hashes:
    """part -> {file name: sha256} of the raw files that `stages` are made from.

    Raises:
        InputError: a path does not exist, is empty or cannot be read.
    """
    found: Hashes = {}
    stages = list(stages)
    if "rl" in stages and "reward" not in stages and reads_comparisons(recipe.rl):
        stages.append("reward")
    for stage in stages:
        for part in (PARTS[stage], *(("pretrain",) if _made(recipe, stage) else ())):
            if part not in found and recipe.data.origin(part) == "files":
                found[part] = raw_hashes(_files(recipe, part))
        if stage == "pretrain" and recipe.data.replay:
            found[REPLAY] = replay_inputs(recipe.data)["raw"]
    return found


def _files(recipe: Recipe, part: str) -> list[RawFile]:
    if part == "pretrain":
        return text_files(recipe.data)
    return find_files(recipe.data.paths(part), f"data.{part}")[0]


def _made(recipe: Recipe, stage: str) -> bool:
    return recipe.data.origin(PARTS[stage]) == "made"


def check_unchanged(before: Hashes, now: Hashes, old: Recipe | None, new: Recipe) -> None:
    """Refuses raw data that changed under the same path.

    A path that the recipe now names differently is a change of the recipe, and no fault.

    Raises:
        InputError: a file's content changed, or files came or went.
    """
    if old is None:
        return
    faults = []
    for part, hashes in now.items():
        known = before.get(part)
        same_path = old.data.paths(part) == new.data.paths(part)
        if known is None or not same_path or known == hashes:
            continue
        names = [name for name in {**known, **hashes} if known.get(name) != hashes.get(name)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        faults.append(
            f"data.{part}={','.join(new.data.paths(part))} changed since this run read it "
            f"({', '.join(names[:3])}{more}): put it back, give another folder with --out, or add "
            "--redo to prepare it again and repeat the stages made from it"
        )
    if faults:
        raise InputError(*faults)


def data_key(recipe: Recipe, stage: str, hashes: Hashes) -> str:
    """Hash of all that decides a stage's data: where it comes from, by content, and how much.

    Args:
        recipe: resolved, so that amounts and lengths are known.
    """
    data, part = recipe.data, PARTS[stage]
    origin = data.origin(part)
    told: dict[str, Any] = {"origin": origin}
    if stage == "pretrain" and origin == "world":
        told |= {"world": recipe.world.model_dump(), "text": [], "cut": data.document}
    elif stage != "pretrain":
        told["most"] = [recipe.model.context, recipe.rl.max_new_tokens]
    if stage in _AMOUNTS and origin != "files":
        told["amount"] = getattr(data, _AMOUNTS[stage])
    if origin != "world":
        told["validation"] = data.validation
    if origin == "files" and stage != "pretrain":
        told |= {"files": sorted(hashes.get(part, {}).values()), "keys": data.keys}
        told["bad_rows"] = data.bad_rows
        if stage == "rl" and recipe.rl.rewards:
            told["columns"] = True
        if part == "preferences" and takes_judgements(recipe.rl):
            told["judgements"] = True
    if stage == "reward":
        told |= judged_inputs(recipe)
    from_text = origin == "made" or (stage == "rl" and bool(data.paths("pretrain")))
    if from_text or (origin == "files" and stage == "pretrain"):
        text = sorted(hashes.get("pretrain", {}).values())
        told["text"] = {**corpus_inputs(data), "raw": text}
    if origin == "files" and stage == "pretrain":
        told["drawn"] = [data.mixture.model_dump(), data.overlap]
    if stage == "pretrain" and data.replay:
        told[REPLAY] = [replay_inputs(data), data.replay.share]
    if stage == "rl" and reads_comparisons(recipe.rl):
        told["comparisons"] = data_key(recipe, "reward", hashes)
    return sha256_json(told)
