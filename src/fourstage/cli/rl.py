"""`fourstage rl`: one stage of a recipe."""

from __future__ import annotations

from fourstage.cli.running import command_for

command = command_for("rl", "Reinforcement learning: the chat model against the reward model.")
