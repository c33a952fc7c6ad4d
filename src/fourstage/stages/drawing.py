"""Episodes as they are drawn: which prompts come next, the policy's responses, what they are worth.

With dynamic sampling, groups whose responses are all worth the same are drawn again from further
prompts (Yu et al., DAPO, 2025, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fourstage import tasks as checkers
from fourstage.errors import MachineError
from fourstage.evaluation.diversity import distinct, overlap_of_groups
from fourstage.evaluation.responses import Response
from fourstage.generation.elsewhere import Elsewhere
from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Sampling
from fourstage.model.transformer import Transformer
from fourstage.objectives.advantages import dead_groups, overlong_penalties
from fourstage.parallel.group import Group
from fourstage.randomness import permutation, seed_for
from fourstage.recipe import RL
from fourstage.stages import engines, playing
from fourstage.stages.context import StageContext
from fourstage.stages.episodes import Episodes
from fourstage.stages.judging import Judge, told_of_faults
from fourstage.tasks import Task

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer


class Drawer:
    """Draws the episodes of an iteration.

    Args:
        policy: the model that responds.
        tasks: the prompts to respond to, walked through in a fresh permutation each epoch.
        section: `rl` of a resolved recipe.
        group: processes that deal out prompts among them; each then has all responses.
        say: prints a line.
        elsewhere: draws in place of the engine here, asked by the process that writes.

    Attributes:
        rows: responses that are drawn at a time; falls where they do not fit the memory.
        place: prompts that were taken so far; part of the checkpoint, as `rows` is.
    """

    def __init__(
        self,
        policy: Transformer,
        tokenizer: Tokenizer,
        tasks: Sequence[Task],
        section: RL,
        seed: int,
        group: Group,
        say: Callable[[str], None],
        elsewhere: Elsewhere | None = None,
    ):
        self.elsewhere = elsewhere
        self.policy, self.tokenizer, self.tasks = policy, tokenizer, list(tasks)
        self.prompts = [tokenizer.chat_prompt(task.prompt) for task in self.tasks]
        # Resolved: none of its numbers is open.
        self.section: Any = section
        self.seed, self.group, self.say = seed, group, say
        self.rows: int = self.section.rollout_batch
        self.place = 0
        self._known_faults: set[str] = set()

    @property
    def longest(self) -> int:
        """Cells that no response has more of, with its prompt."""
        if self.section.environment is not None:
            return self.policy.config.context
        return max(map(len, self.prompts)) + self.section.max_new_tokens

    def draw(self, iteration: int, judge: Judge) -> Episodes:
        """The episodes of an iteration: a full batch that is trained on, and what was left.

        Groups that are dead after the last round fill the batch, in which they teach nothing.
        """
        section, drawn = self.section, Episodes()
        if self.elsewhere is not None:
            self.elsewhere.take(self.policy)
        wanted = section.rollout_batch // section.group
        # A rollback may have left iterations out: their prompts do not come again.
        self.place = max(self.place, iteration * wanted)
        rounds = section.dynamic_rounds if section.dynamic_sampling else 1
        for _ in range(rounds):
            lacking = wanted - len(drawn.kept) // section.group
            chosen = self.chosen(self.place, lacking)
            self.place += lacking
            first = len(drawn.responses)
            responses = self._responses(chosen, iteration, first, judge)
            self._add(drawn, chosen, responses, judge)
            new = range(first, len(drawn.responses))
            drawn.kept += [i for i in new if not (section.dynamic_sampling and drawn.dead[i])]
            if len(drawn.kept) == section.rollout_batch:
                break
        lacking = section.rollout_batch - len(drawn.kept)
        dead = [i for i in range(len(drawn.responses)) if drawn.dead[i]]
        drawn.kept += dead[len(dead) - lacking :] if lacking else []
        return drawn

    def numbers(self, drawn: Episodes, judge: Judge) -> dict[str, float]:
        """Means over all that was drawn; gold is measured, written down, and read by nothing."""
        responses, group = drawn.responses, self.section.group
        told = {
            "reward": float(drawn.scores.mean()),
            "length": float(np.mean([sum(each.turn_lengths) for each in responses])),
            "finished": float(np.mean([judge.ended(each) for each in responses])),
        }
        own = [each.own_tokens for each in responses]
        alike = {"distinct_2": distinct(own, 2), "self_overlap": overlap_of_groups(own, group)}
        told |= {name: value for name, value in alike.items() if value is not None}
        if group > 1:
            told["dead_groups"] = float(drawn.dead.float().mean())
        if self.section.dynamic_sampling:
            told["redrawn_groups"] = float((len(responses) - len(drawn.kept)) // group)
        if self.section.environment is not None:
            # What its rows would be judged by is of single answers.
            return told | playing.numbers(responses) | judge.numbers(drawn.judged)
        golds = [
            checkers.gold(task, each.text)
            for index, each in zip(drawn.tasks, responses, strict=True)
            if (task := self.tasks[index]).facts.get("checker")
        ]
        if golds:
            told["gold"] = float(np.mean(golds))
        return told | judge.numbers(drawn.judged, responses)

    def chosen(self, place: int, count: int) -> list[int]:
        """Indices of the `count` tasks from `place` on, each `group` times in a row."""
        found, orders = [], {}
        for here in range(place, place + count):
            epoch, index = divmod(here, len(self.tasks))
            if epoch not in orders:
                orders[epoch] = permutation(len(self.tasks), self.seed, "prompts", epoch)
            found += [int(orders[epoch][index])] * self.section.group
        return found

    def _responses(
        self, chosen: Sequence[int], iteration: int, first: int, judge: Judge
    ) -> Sequence[Response]:
        """One response to each chosen prompt, or one episode of it with an environment."""
        if judge.environments is None:
            return self.respond(chosen, iteration, first)
        group, seed = self.section.group, self.seed
        play = playing.Playing(
            self.section,
            self.tokenizer,
            judge.environments,
            self.policy.config.context,
            self.generate,
            self.group,
        )
        # Episodes of a group begin alike.
        starts = [(first + i) // group for i in range(len(chosen))]
        with judge.lock:
            return play(
                [self.tasks[i] for i in chosen],
                [seed_for(seed, "environment", iteration, start) for start in starts],
                lambda i, turn: seed_for(seed, "rollout", iteration, first + i, turn),
            )

    def respond(self, chosen: Sequence[int], iteration: int, first: int = 0) -> list[Response]:
        """One response to each chosen prompt, at the temperature and from the whole distribution:
        a truncated one would bias the probability ratio.

        Args:
            first: how many were drawn in the iteration before.
        """
        seeds = [seed_for(self.seed, "rollout", iteration, first + i) for i in range(len(chosen))]
        prompts = [self.prompts[i] for i in chosen]
        return [
            self._response(prompt, drawn, logprobs)
            for prompt, (drawn, logprobs) in zip(
                prompts, self.generate(prompts, seeds), strict=True
            )
        ]

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]
    ) -> list[tuple[list[int], np.ndarray]]:
        """Tokens drawn for each row, and their log-probabilities [tokens]; each process draws its
        share, and has them all."""
        section = self.section
        sampling = Sampling(
            temperature=section.temperature,
            max_new_tokens=section.max_new_tokens,
            stop_ids=self.tokenizer.stop_ids,
        )
        if section.engine is not None:
            return self._from_elsewhere(prompts, sampling, seeds)
        engine, share = Engine(self.policy, max_batch=self.rows), self.group.share
        done = engine.generate(share(prompts), sampling, share(seeds))
        self._keep_rows(engine.max_batch)
        tokens = [torch.tensor(each.tokens, dtype=torch.long) for each in done]
        logprobs = [torch.from_numpy(each.logprobs) for each in done]
        tokens = self.group.collect(tokens, len(prompts), torch.long)
        logprobs = self.group.collect(logprobs, len(prompts))
        return [
            (drawn.tolist(), each.numpy()) for drawn, each in zip(tokens, logprobs, strict=True)
        ]

    def _from_elsewhere(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[tuple[list[int], np.ndarray]]:
        """What another engine draws, told to all processes."""
        done = self.elsewhere.generate(prompts, sampling, seeds) if self.elsewhere else []
        known = self.policy.config.vocab_size
        strange = [token for each in done for token in each.tokens if not 0 <= token < known]
        if strange:
            raise MachineError(
                f"rl.engine drew token {strange[0]}, outside the policy's vocabulary of {known}: "
                "it has to have this policy's weights"
            )
        told = self.group.tell([[each.tokens, each.logprobs.tolist()] for each in done])
        return [(tokens, np.array(logprobs, np.float32)) for tokens, logprobs in told]

    def close(self) -> None:
        """Lets go of an engine elsewhere."""
        if self.elsewhere is not None:
            self.elsewhere.close()

    def _keep_rows(self, fitted: int) -> None:
        """Goes on with what fitted the memory of every process; a run that is resumed does too."""
        fewest = int(self.group.lowest(fitted))
        if fewest < self.rows:
            self.say(f"rl: out of memory in the rollouts; from here on {fewest} at a time")
            self.rows = fewest

    def _response(self, prompt: Sequence[int], drawn: list[int], logprobs: np.ndarray) -> Response:
        stopped = bool(drawn) and drawn[-1] in self.tokenizer.stop_ids
        text = self.tokenizer.decode(drawn)
        return Response(tuple(prompt), tuple(drawn), text, stopped, logprobs)

    def _add(
        self, drawn: Episodes, chosen: list[int], responses: Sequence[Response], judge: Judge
    ) -> None:
        judged = judge([self.tasks[index] for index in chosen], responses)
        for line in told_of_faults(judged.faults(), len(responses), self._known_faults):
            self.say(line)
        scores = torch.tensor(judged.scores, dtype=torch.double).float()
        if self.section.overlong == "penalty":
            scores = scores + self._overlong(responses)
        groups = torch.arange(len(scores)) // self.section.group
        drawn.add(chosen, responses, scores, judged, dead_groups(scores, groups))

    def _overlong(self, responses: Sequence[Response]) -> Tensor:
        """[responses] of each the sum over its turns."""
        section = self.section
        lengths = [float(length) for each in responses for length in each.turn_lengths]
        found = overlong_penalties(
            torch.tensor(lengths), section.max_new_tokens, section.overlong_buffer
        )
        of_each = found.split([len(each.turn_lengths) for each in responses])
        return torch.stack([part.sum() for part in of_each])


def drawer(context: StageContext, model: Transformer, tasks: Sequence[Task]) -> Drawer:
    """Draws responses of `model` to `tasks`, as a stage does."""
    say = context.say if context.group.writes else lambda line: None
    section, seed = context.section, context.seed
    return Drawer(
        model, context.tokenizer, tasks, section, seed, context.group, say, engines.started(context)
    )
