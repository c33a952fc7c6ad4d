"""`fourstage sft`: one stage of a recipe."""

from __future__ import annotations

from fourstage.cli.running import command_for

command = command_for("sft", "Supervised fine-tuning: a chat model from demonstrations.")
