"""Low-rank adapters on a frozen model, in every layout.

layers.py      adapters in Megatron's linear layers
attaching.py   a model's layers given them; what a checkpoint says of them
job.py         a MergeAdapterJob: adapters folded into the weights
exporting.py   adapters as PEFT keeps them
"""

from cupola_trainer.config import MergeAdapterJob

__all__ = ["merge_adapter"]


def merge_adapter(job: MergeAdapterJob) -> None:
    """Obey a MergeAdapterJob. Megatron is loaded only then."""
    from cupola_trainer.lora import job as merge_job

    merge_job.run(job)
