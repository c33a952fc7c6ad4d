"""The parts of the page, each a function of the run's files that may find nothing to show."""
