"""How good a checkpoint is. `intervals` and `tasks` import no torch: flows call them in process.

tasks.py        questions whose answers a program scores
statistics.py   how sure an accuracy is
likelihood.py   held-out bits per byte
answers.py      task accuracy and generations
job.py          an EvaluateJob, from checkpoints to results.json
"""

from cupola_trainer.config import EvaluateJob


def run(job: EvaluateJob) -> None:
    """Obey an EvaluateJob. Torch is loaded only then."""
    from cupola_trainer.evaluation import job as evaluate_job

    evaluate_job.run(job)
