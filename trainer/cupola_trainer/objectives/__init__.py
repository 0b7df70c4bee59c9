"""What a model is trained for: one module an objective, named as the objective is, with a function `build`.

base.py            the contract; online.py adds what learning from the model's own responses needs
inputs.py          what an objective is built from
batches.py         which samples each rank reads in which forward pass
passes.py          an objective's training step and held-out means
losses/            the losses as pure functions of tensors
next_token.py  sft.py  dpo.py  reward.py  distillation.py      the objectives

Objectives that learn from the model's own responses are in `rl`; those of other packages are found by the entry
point group `cupola.objectives`. `cupola_trainer.training.objective_table` looks them up by name.
"""
