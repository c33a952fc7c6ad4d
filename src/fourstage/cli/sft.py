"""`fourstage sft`: one stage of a recipe."""

from __future__ import annotations

from fourstage.cli.running import stage_command

command = stage_command("sft", "Supervised fine-tuning: a chat model from demonstrations.")
