"""`fourstage reward`: one stage of a recipe."""

from __future__ import annotations

from fourstage.cli.running import stage_command

command = stage_command("reward", "Reward modelling: a reward model from comparisons.")
