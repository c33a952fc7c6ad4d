"""`fourstage run`: all stages of a recipe."""

from __future__ import annotations

from fourstage.cli.running import command_for

command = command_for(None, "Run all stages of a recipe; run again to go on where it stopped.")
