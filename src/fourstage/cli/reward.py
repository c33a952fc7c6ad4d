"""`fourstage reward`: one stage of a recipe."""

from __future__ import annotations

from fourstage.cli.running import command_for

command = command_for("reward", "Reward modelling: a reward model from comparisons.")
