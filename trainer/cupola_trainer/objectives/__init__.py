"""Training objectives: one module per objective, named after it, with a function `build`.

base.py            the interface; online.py extends it to learning from the model's own responses
inputs.py          what an objective is built from
batches.py         which samples each rank reads in each forward pass
passes.py          an objective's training step and held-out means
losses/            the losses as pure functions of tensors
next_token.py  sft.py  dpo.py  reward.py  distillation.py      the objectives

Objectives that learn from the model's own responses are in `rl`; other packages add theirs with the entry point group
`cupola.objectives`. `cupola_trainer.training.objective_table` looks them up by name.
"""
