"""Reinforcement learning from the model's own responses: GRPO, PPO and online DPO.

rollout_objective.py   their common base: samples come from rollouts of the model in training
grpo.py  ppo.py  online_dpo.py    samples and loss of each objective, with a function `build`
prompts.py             the prompts and their order
collector.py           collects rollouts: generates responses, scores them and computes log-probabilities
rollouts.py            a rollout as arrays, stored with the job until it has been trained on
rewards.py             scorers and their weighted sum
reward_model.py        a checkpoint with a scalar head as a scorer
inference.py           frozen models, and forward passes over a whole rollout
ema.py                 the EMA of the policy as the reference (WARP)
value_model.py         PPO's value model, with its own optimizer
companions.py          checkpoints of models saved along with the policy
"""
