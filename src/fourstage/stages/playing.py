"""Episodes of several turns: the policy answers, the environment writes, and so on.

All episodes that are alive generate together, a batch each turn. Token ids travel: what was drawn
stays as it was drawn, and what the environment writes is appended as a user's turn of the chat
template. Only what the policy drew is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fourstage.environments.contracts import Opening, Step, told
from fourstage.environments.hosting import Environments
from fourstage.evaluation.responses import Response
from fourstage.parallel.group import Group
from fourstage.recipe import RL
from fourstage.rewards.contracts import Outcome
from fourstage.rewards.total import Judged
from fourstage.tasks import Task

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

# Token rows and seeds -> tokens drawn for each, and their log-probabilities [tokens].
Generate = Callable[
    [Sequence[Sequence[int]], Sequence[int]], Sequence[tuple[Sequence[int], np.ndarray]]
]
# What the part of the rewards is called that an environment gives.
_NAME = "environment"


@dataclass(frozen=True)
class Dialogue(Response):
    """An episode as a response: all that follows its first messages.

    `text` is the policy's last answer, `finished` whether every answer drew a stop token, and
    `logprobs` are [drawn], of the tokens that the policy drew.

    Attributes:
        spans: first and past-the-last place in `tokens` of each answer of the policy.
        rewards: of each turn.
        fault: what the environment did wrong, if anything.
        cut: whether it ended by the limit of turns or of the context.
        said: the environment's texts after each answer but the last.
    """

    spans: tuple[tuple[int, int], ...] = ()
    rewards: tuple[float, ...] = ()
    fault: str = ""
    cut: bool = False
    said: tuple[str, ...] = field(default=(), compare=False)

    @property
    def drawn(self) -> np.ndarray:
        """[tokens] bool: whether the policy drew each."""
        found = np.zeros(len(self.tokens), bool)
        for first, end in self.spans:
            found[first:end] = True
        return found

    @property
    def turn_rewards(self) -> list[tuple[int, float]]:
        """The last token of each turn, and its reward."""
        return [
            (end - 1, reward) for (_, end), reward in zip(self.spans, self.rewards, strict=True)
        ]

    @property
    def turn_lengths(self) -> tuple[int, ...]:
        return tuple(end - first for first, end in self.spans)

    @property
    def own_tokens(self) -> tuple[int, ...]:
        return tuple(np.array(self.tokens, np.int64)[self.drawn].tolist())


class Playing:
    """Plays episodes of `rl.environment`.

    Args:
        section: `rl` of a resolved recipe.
        context: tokens that the policy can read.
        generate: draws an answer to each row; with several processes all of them call it.
        group: the first process asks the environment, and tells the others.
    """

    def __init__(
        self,
        section: RL,
        tokenizer: Tokenizer,
        environments: Environments,
        context: int,
        generate: Generate,
        group: Group | None = None,
    ):
        # Resolved: none of its numbers is open.
        self.section: Any = section
        self.tokenizer, self.environments = tokenizer, environments
        self.context, self.generate = context, generate
        self.group = group or Group()

    def __call__(
        self,
        tasks: Sequence[Task],
        seeds: Sequence[int],
        draw_seeds: Callable[[int, int], int],
    ) -> list[Dialogue]:
        """An episode of each task.

        Args:
            seeds: of the environment of each.
            draw_seeds: episode, turn -> seed of what the policy draws.
        """
        games = self._begun(tasks, seeds)
        alive = list(range(len(games)))
        for turn in range(self.section.environment.turns):
            if not alive:
                break
            rows = [games[key].row for key in alive]
            answers = self.generate(rows, [draw_seeds(key, turn) for key in alive])
            for key, (tokens, logprobs) in zip(alive, answers, strict=True):
                games[key].answer(list(tokens), logprobs, self.tokenizer)
            alive = self._answered(games, alive, turn + 1)
        if self.group.writes:
            self.environments.end()
        return [game.dialogue(self.tokenizer) for game in games]

    def _begun(self, tasks: Sequence[Task], seeds: Sequence[int]) -> list[_Game]:
        openings = [
            Opening(*each)
            for each in self._told(
                lambda: [
                    [each.messages, each.fault]
                    for each in self.environments.reset([told(task) for task in tasks], seeds)
                ]
            )
        ]
        return [self._game(task, opening) for task, opening in zip(tasks, openings, strict=True)]

    def _game(self, task: Task, opening: Opening) -> _Game:
        """An episode before its first answer: with a fault, to the row's own prompt."""
        own = self.tokenizer.chat_prompt(task.prompt)
        if opening.fault or opening.messages is None:
            return _Game(own, fault=opening.fault)
        prompt = self.tokenizer.chat_prompt(opening.messages)
        if self._has_room(prompt):
            return _Game(prompt)
        return _Game(
            own,
            fault=f"reset gave {len(prompt)} tokens, which leave no room for "
            f"max_new_tokens={self.section.max_new_tokens} in the context of {self.context}",
        )

    def _has_room(self, row: Sequence[int]) -> bool:
        return len(row) + self.section.max_new_tokens <= self.context

    def _answered(self, games: list[_Game], alive: list[int], turns: int) -> list[int]:
        """Takes what the environment says of the newest answers; the episodes that go on."""
        asked = [key for key in alive if self._can_be_read(games[key])]
        steps = self._told(
            lambda: [
                [each.observation, each.reward, each.done, each.fault]
                for each in self.environments.step(asked, [games[key].text for key in asked])
            ]
        )
        going = []
        for key, step in zip(asked, (Step(*each) for each in steps), strict=True):
            if self._goes_on(games[key], step, turns):
                going.append(key)
        return going

    def _can_be_read(self, game: _Game) -> bool:
        """Whether the newest answer is shown to the environment: it ended, in a fair beginning."""
        if game.fault:
            game.rewards.append(self.section.environment.fault_score)
            return False
        if game.row[-1] != self.tokenizer.end_of_turn:
            game.rewards.append(self.section.missing_end_penalty)
            return False
        return True

    def _goes_on(self, game: _Game, step: Step, turns: int) -> bool:
        if step.fault:
            return self._failed(game, step.fault)
        observed = [] if step.done else self._observed(step.observation)
        if len(observed) > self.context:
            return self._failed(
                game,
                f"step gave an observation of {len(observed)} tokens, more than the context of "
                f"{self.context}",
            )
        game.rewards.append(step.reward)
        if step.done:
            return False
        if turns == self.section.environment.turns or not self._has_room([*game.row, *observed]):
            game.cut = True
            return False
        game.row += observed
        game.said.append(step.observation)
        return True

    def _failed(self, game: _Game, fault: str) -> bool:
        game.fault = fault
        game.rewards.append(self.section.environment.fault_score)
        return False

    def _observed(self, text: str) -> list[int]:
        """A user's turn behind an answer, up to where the next answer begins."""
        tokenizer = self.tokenizer
        opening, content = tokenizer.turn("user", text)
        answering, _ = tokenizer.turn("assistant", "")
        return [*tokenizer.after_turn, *opening, *content, *tokenizer.after_turn, *answering]

    def _told(self, ask: Callable[[], Any]) -> Any:
        """What the process that writes found out, on every process."""
        return self.group.tell(ask() if self.group.writes else None)


@dataclass
class _Game:
    """An episode that is being played.

    Attributes:
        row: all tokens so far.
        prompt_tokens: of them those in front of the first answer.
    """

    row: list[int]
    fault: str = ""
    cut: bool = False
    text: str = ""
    spans: list[tuple[int, int]] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    is_finished: bool = True

    def __post_init__(self) -> None:
        self.row = list(self.row)
        self.prompt_tokens = len(self.row)

    def answer(self, tokens: list[int], logprobs: np.ndarray, tokenizer: Tokenizer) -> None:
        first = len(self.row) - self.prompt_tokens
        self.row += tokens
        self.spans.append((first, first + len(tokens)))
        self.logprobs.append(logprobs)
        self.text = tokenizer.decode(tokens)
        self.is_finished &= tokens[-1] in tokenizer.stop_ids

    def dialogue(self, tokenizer: Tokenizer) -> Dialogue:
        return Dialogue(
            tuple(self.row[: self.prompt_tokens]),
            tuple(self.row[self.prompt_tokens :]),
            self.text,
            self.is_finished,
            np.concatenate(self.logprobs),
            tuple(self.spans),
            tuple(self.rewards),
            self.fault,
            self.cut,
            tuple(self.said),
        )


def judged(played: Sequence[Dialogue], by_turn: bool) -> Judged:
    """What episodes are worth: the sum over their turns, each paid at its end if `by_turn`."""
    scores = [float(sum(each.rewards)) for each in played]
    outcomes = [
        Outcome(fault=each.fault) if each.fault else Outcome(score)
        for each, score in zip(played, scores, strict=True)
    ]
    placed = [each.turn_rewards for each in played] if by_turn else []
    return Judged(scores, {_NAME: outcomes}, placed=placed)


def dialogues(responses: Sequence[Response]) -> list[Dialogue]:
    """Responses that are episodes, as all are where there is an environment."""
    found = [each for each in responses if isinstance(each, Dialogue)]
    if len(found) != len(responses):
        raise ValueError("with an environment every response is an episode")
    return found


def numbers(responses: Sequence[Response]) -> dict[str, float]:
    """Turns an episode, and the share that a limit ended."""
    played = dialogues(responses)
    return {
        "turns": float(np.mean([len(each.spans) for each in played])),
        "cut_episodes": float(np.mean([each.cut for each in played])),
    }


def transcript(dialogue: Dialogue, tokenizer: Tokenizer) -> str:
    """An episode for people to look at: the policy's answers, and `> ` before what it was told."""
    answers = [tokenizer.decode(dialogue.tokens[first:end]) for first, end in dialogue.spans]
    lines = [answers[0]]
    for said, answer in zip(dialogue.said, answers[1:], strict=True):
        lines += [f"> {said}", answer]
    return "\n".join(lines)
