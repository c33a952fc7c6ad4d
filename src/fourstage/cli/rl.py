"""`fourstage rl`: one stage of a recipe."""

from __future__ import annotations

from fourstage.cli.running import stage_command

command = stage_command("rl", "Reinforcement learning: the chat model against the reward model.")
