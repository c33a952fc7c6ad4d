"""Preparation on a cluster: the steps of one machine, shared out over tasks by datatrove."""

from fourstage.data.cluster.job import Job
from fourstage.data.cluster.launching import launch
from fourstage.data.cluster.resources import Resources, options_of

__all__ = ["Job", "Resources", "launch", "options_of"]
