"""Low-rank adapters applied to a model from outside, on bases of full or fewer bits."""
