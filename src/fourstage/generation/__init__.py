"""Batched, cached generation, and how tokens are drawn."""
