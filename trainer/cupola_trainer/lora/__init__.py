"""Low-rank adapters on a frozen model, in every layout.

layers.py      adapters in Megatron's linear layers
attaching.py   adding them to a model; their description in checkpoints
folding.py     folding adapters into the weights
exporting.py   exporting adapters to PEFT
"""
