"""Learning from one's own answers: GRPO, PPO and online DPO.

queries.py     the questions, and the order that they are asked in
rewards.py     what an answer is worth
rollouts.py    questions asked, answers drawn and scored, as arrays; kept with the job until they are learnt
learning.py    what the three have in common: an objective whose samples come from rollouts of the model in training
grpo.py  ppo.py  online_dpo.py    each one's loss
anchor.py      a reference that follows the policy (WARP's)
beside.py      checkpoints of models that go with the one in training
front.py       what checkpoints are worth, and how far they are from a reference
value.py       PPO's value model, with an optimizer and checkpoints of its own
"""

from pathlib import Path
from typing import Any

from cupola_trainer.config import TrainJob
from cupola_trainer.config.reinforcement import GrpoData, OnlineDpoData, PpoData
from cupola_trainer.objectives.objective import Objective


def build(job: TrainJob, tokenizer: Any, tokenizer_folder: Path) -> Objective:
    """The objective of a job that learns from its own answers.

    Raises:
        ConfigError: it has no initial checkpoint, no usable question, or sizes that do not fit each other.
    """
    from cupola_trainer.reinforcement.forwarding import initial_of
    from cupola_trainer.reinforcement.grpo import GrpoObjective
    from cupola_trainer.reinforcement.online_dpo import OnlineDpoObjective
    from cupola_trainer.reinforcement.ppo import PpoObjective

    initial_of(job)
    if isinstance(job.data, GrpoData):
        return GrpoObjective(job, job.data, tokenizer)
    if isinstance(job.data, OnlineDpoData):
        return OnlineDpoObjective(job, job.data, tokenizer)
    assert isinstance(job.data, PpoData)
    return PpoObjective(job, job.data, tokenizer, tokenizer_folder)
