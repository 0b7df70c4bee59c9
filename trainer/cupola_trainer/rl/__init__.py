"""Learning from the model's own responses: GRPO, PPO and online DPO.

rollout_objective.py   what they have in common: samples come from rollouts of the model in training
grpo.py  ppo.py  online_dpo.py    each one's samples and loss; named as the objective is, with a function `build`
prompts.py             the prompts, and the order that they are used in
collector.py           makes rollouts: responses are generated, scored, and given log-probabilities
rollouts.py            a rollout as arrays, kept with the job until it has been trained on
rewards.py             scorers, and their weighted sum
reward_model.py        a checkpoint with a scalar head as a scorer
inference.py           frozen models, and forward passes over a whole rollout
ema.py                 a reference that is the moving average of the policy (WARP)
value_model.py         PPO's value model, with an optimizer of its own
companions.py          checkpoints of models that are saved with the policy's
"""
