"""Rollouts token by token: read from a checkpoint, in the terminal, and as a page of their own."""
