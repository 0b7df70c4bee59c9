"""Several checkpoints of one architecture, merged into one, a tensor of a layer at a time.

methods.py    the formulas: average, SLERP, TIES, DARE
job.py        a MergeJob
"""

from cupola_trainer.config import MergeJob

__all__ = ["run"]


def run(job: MergeJob) -> None:
    """Obey a MergeJob. Megatron is loaded only then."""
    from cupola_trainer.merging import job as merge_job

    merge_job.run(job)
