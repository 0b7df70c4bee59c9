"""Low-rank adapters on a frozen model, in every layout.

layers.py      adapters in Megatron's linear layers
attaching.py   a model's layers given them; what a checkpoint says of them
folding.py     adapters folded into the weights
exporting.py   adapters as PEFT keeps them
"""
