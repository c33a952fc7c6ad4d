"""Rewards that need no reward model: a number for each response, or a fault."""
