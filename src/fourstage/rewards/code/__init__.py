"""Code that a model wrote, run against tests in a contained process."""
