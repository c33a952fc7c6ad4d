"""What each stage is worth, on held-out data: one number a question, each with its interval."""
