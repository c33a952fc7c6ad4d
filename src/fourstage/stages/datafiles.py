"""What preparation left in data/, as the stages read it."""

from __future__ import annotations

held_out_tasks = sample_tasks = training_tasks = held_out_documents = held_out_pairs = None
reference_rows = demonstrations = None
