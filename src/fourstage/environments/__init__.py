"""Environments: what a policy talks to for several turns, and what that is worth."""
