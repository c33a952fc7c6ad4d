"""The run that a study is of: its recipe, its models, its held-out prompts, and who knows gold."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourstage import tasks as checkers
from fourstage.data.prepared import PreparedData
from fourstage.errors import InputError
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.responses import Response
from fourstage.evaluation.scoring import scores
from fourstage.files import sha256_json
from fourstage.interchange import is_reward_model, load_config
from fourstage.model.transformer import Transformer
from fourstage.pipeline.lineage import model_hash
from fourstage.recipe import STAGES, Recipe
from fourstage.reporting.batches import open_tokenizer, resolved_recipe
from fourstage.stages.context import StageContext
from fourstage.stages.judging import Judge
from fourstage.stages.models import frozen, judges_as_asked, language_model, reward_model
from fourstage.stages.revisiting import open_stage
from fourstage.tasks import Task

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

Say = Callable[[str], None]
Scorer = Callable[[Sequence[Task], Sequence[Response]], list[float]]


@dataclass(frozen=True)
class Subject:
    """A finished run, opened to be studied; nothing in it is written.

    Attributes:
        recipe: resolved. sft, reward: the folders of the initial policy and of the proxy.
        tasks: held-out prompts. gold_folder: the reward model that stands for gold, if it is one.
    """

    run: Path
    recipe: Recipe
    tokenizer: Tokenizer
    context: StageContext
    sft: Path
    reward: Path
    tasks: list[Task]
    gold_folder: Path | None = None

    @property
    def gold_key(self) -> str:
        """What gold is, by content."""
        return model_hash(self.gold_folder) if self.gold_folder else "checker"

    @property
    def gold_words(self) -> str:
        return f"the reward model {called(self.gold_folder)}" if self.gold_folder else "the checker"

    def policy(self, folder: Path) -> Transformer:
        """A chat model of this run's tokenizer."""
        return frozen(language_model(folder, self.context))

    @contextmanager
    def proxy(self, folder: Path, say: Say) -> Generator[Scorer]:
        """Scores responses as the rl stage does, with the reward model of `folder`."""
        section = self.recipe.rl
        judges_as_asked(folder, section)
        with Judge(
            section,
            self.tokenizer,
            reward_model(folder, self.context),
            missing_end=section.missing_end_penalty,
        ) as judge:
            judge.start(self.tasks, say)
            yield lambda tasks, responses: judge(tasks, responses).scores

    def gold(self) -> Scorer:
        """What responses are truly worth: by the prompts' checker, or by another reward model."""
        if self.gold_folder is None:
            return lambda tasks, responses: [
                checkers.gold(task, each.text) for task, each in zip(tasks, responses, strict=True)
            ]
        judge = reward_model(self.gold_folder, self.context)
        return lambda tasks, responses: np.asarray(
            scores(judge, reward_rows(self.tokenizer, responses))
        ).tolist()


def check_judges(subject: Subject, rivals: Sequence[Path]) -> None:
    """Looks at the reward models that a person named.

    Raises:
        InputError: one is none, or cannot judge as the rl stage has them judge.
    """
    gold = [(subject.gold_folder, "--gold")] if subject.gold_folder is not None else []
    for folder, option in [*gold, *((rival, "--reward-model") for rival in rivals)]:
        if not is_reward_model(folder):
            raise InputError(
                f"{option} {folder}: no reward model; give a folder such as a run's reward/model"
            )
    for rival in rivals:
        judges_as_asked(rival, subject.recipe.rl)


def called(folder: Path) -> str:
    """A short name of a model folder: its run's, where it is a stage's `model`."""
    parts = [part for part in folder.resolve().parts if part not in ("model", *STAGES)]
    return parts[-1]


def open_subject(
    run: Path, folder: Path, gold: Path | None, prompts: int, device: str, say: Say
) -> Subject:
    """Opens a run, and sees that all is there before anything is spent.

    Args:
        folder: the study's, which is where a stage context would write.

    Raises:
        InputError: it is no run, a model is missing, or there are no prompts whose gold is known.
    """
    recipe = resolved_recipe(run)
    tokenizer = open_tokenizer(run)
    section = recipe.rl
    if section.environment is not None:
        raise InputError(
            f"{run}: its rl is paid by rl.environment, so that there is no reward model to "
            "over-optimise; study a run with one"
        )
    if section.rewards and not section.needs_reward_model:
        raise InputError(
            f"{run}: its rl is paid by rl.rewards alone, so that there is no reward model to "
            "over-optimise; study a run with one"
        )
    sft = Path(section.source_model) if section.source_model else run / "sft" / "model"
    reward = Path(section.reward_model) if section.reward_model else run / "reward" / "model"
    for needed, stage in ((sft, "sft"), (reward, "reward")):
        if not (needed / "config.json").is_file():
            raise InputError(
                f"{needed}: no finished model; run the {stage} stage of {run} before its study"
            )
    context = open_stage(run, recipe, tokenizer, {"from": sft}, folder, device)
    found = PreparedData.open(run).tasks("rl", "validation")
    if gold is None:
        found = [task for task in found if task.facts.get("checker")]
        if not found:
            raise InputError(
                f"{run}: no held-out prompt of rl has a checker that knows its gold; write "
                "--gold DIR, a reward model that stands for the truth"
            )
    room = load_config(sft).context
    fitting = [task for task in found if len(tokenizer.chat_prompt(task.prompt)) < room]
    # A prompt that stands there twice says nothing the second time.
    found = list({sha256_json(task.prompt): task for task in fitting}.values())
    if not found:
        raise InputError(f"{run}: no held-out prompt of rl that fits the context")
    if len(found) < prompts:
        say(f"study: {len(found)} held-out prompts there are, all of them are taken")
    return Subject(run, recipe, tokenizer, context, sft, reward, found[:prompts], gold)
