"""A smaller model out of a larger one (Minitron, Muralidharan et al. 2024; ShortGPT, Men et al. 2024).

importance.py   what each layer, channel, head, unit and expert does to held-out text
choice.py       which of them stay
tensors.py      the smaller model's tensors, cut from the larger one's
job.py          a PruneJob
"""

from cupola_trainer.config import PruneJob

__all__ = ["run"]


def run(job: PruneJob) -> None:
    """Obey a PruneJob. Megatron is loaded only then."""
    from cupola_trainer.pruning import job as prune_job

    prune_job.run(job)
