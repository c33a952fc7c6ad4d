"""Stage 4: reinforcement learning, by the algorithm that the recipe names."""

from __future__ import annotations

from typing import Any

from fourstage.stages import policy
from fourstage.stages.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Trains the policy; the content of results.json."""
    return policy.run(context)
