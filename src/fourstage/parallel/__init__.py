"""Several processes as one: the group they form and the sums they share."""
