# SPDX-License-Identifier: MIT
"""Training: from a recipe to a finished run folder."""

from bpfn_cli.training.job import Job, OpenedDataset
from bpfn_cli.training.pipeline import Outcome, plan_job, run
from bpfn_cli.training.resuming import Changes, resume, run_or_resume
from bpfn_cli.training.teacher import teacher_checkpoint

__all__ = [
    "Changes",
    "Job",
    "OpenedDataset",
    "Outcome",
    "plan_job",
    "resume",
    "run",
    "run_or_resume",
    "teacher_checkpoint",
]
