"""Stages as steps of datatrove pipelines."""

from __future__ import annotations

import contextlib
from typing import Any

from fourstage.data.cluster.job import Job
from fourstage.data.cluster.stages import Stage
from fourstage.extras import require

PipelineStep: Any = require("datatrove.pipeline.base", "cluster-data").PipelineStep


class StageStep(PipelineStep):
    """One stage as the only step of a pipeline: what it reads and writes are files of the run.

    datatrove's statistics of a task are the time it took and how much it did.
    """

    type = "fourstage"

    def __init__(self, stage: Stage, job: Job):
        self.name = stage.name
        super().__init__()
        self.stage, self.job = stage, job

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        with contextlib.chdir(self.job.directory), self.track_time("task"):
            done = self.stage.work(self.job, rank, world_size)
        self.stat_update(self.stage.unit, value=done, unit="task")
