"""Several checkpoints of one architecture, merged into one, a tensor of a layer at a time.

methods.py    the formulas: average, SLERP, TIES, DARE
trimming.py   the thresholds of TIES
tensors.py    the merged model's tensors
"""
