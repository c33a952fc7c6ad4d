"""The one trainer of every stage: loop, optimiser, schedule, checkpoints, guards, metrics."""
