"""`fourstage pretrain`: one stage of a recipe."""

from __future__ import annotations

from fourstage.cli.running import command_for

command = command_for("pretrain", "Pretraining: a base model from raw text.")
