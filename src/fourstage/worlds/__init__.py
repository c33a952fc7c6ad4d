"""Generated worlds whose probabilities are known exactly."""
