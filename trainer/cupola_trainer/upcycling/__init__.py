"""From a dense model to a mixture of experts, as Qwen2 made 57B-A14B out of 7B (Qwen2 technical report, section 2.2.2).

experts.py    one dense FFN, cut into experts: `upcycle_ffn`
layers.py     a layer's experts, router and shared expert, from a dense checkpoint
job.py        an UpcycleJob, and what it would do: `plan`
"""

from cupola_trainer.config import UpcycleJob
from cupola_trainer.upcycling.experts import Experts, upcycle_ffn

__all__ = ["Experts", "run", "upcycle_ffn"]


def run(job: UpcycleJob) -> None:
    """Obey an UpcycleJob. Megatron is loaded only then."""
    from cupola_trainer.upcycling import job as upcycle_job

    upcycle_job.run(job)
