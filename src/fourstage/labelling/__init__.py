"""Comparisons of a model's own completions, by people and by judges."""
