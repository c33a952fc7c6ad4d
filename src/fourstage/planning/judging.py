"""What a reward model is made of, and so what its score costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fourstage.recipe.schema import Recipe


@dataclass(frozen=True)
class Readers:
    """The models that read an answer for its score.

    Attributes:
        scalar: with a scalar head: one, or the members of an ensemble.
        language: the chat model beside them, with `reward.likelihood`.
    """

    scalar: int = 0
    language: int = 0

    @property
    def models(self) -> int:
        return self.scalar + self.language

    @classmethod
    def of(cls, recipe: Recipe) -> Readers:
        """Of the rl stage; none where no reward model pays."""
        if not recipe.rl.needs_reward_model:
            return cls()
        outside = recipe.rl.reward_model
        if outside is None:
            return cls(recipe.reward.ensemble, int(recipe.reward.likelihood))
        return cls._of_folder(Path(outside))

    @classmethod
    def _of_folder(cls, folder: Path) -> Readers:
        """As config.json says; a folder that is not there yet is taken for a single model."""
        from fourstage.interchange.rewards import likelihood_of, members_of

        if not (folder / "config.json").is_file():
            return cls(1)
        return cls(len(members_of(folder)) or 1, int(likelihood_of(folder) is not None))
