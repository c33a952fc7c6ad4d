"""`fourstage pretrain`: one stage of a recipe."""

from __future__ import annotations

from fourstage.cli.running import stage_command

command = stage_command("pretrain", "Pretraining: a base model from raw text.")
