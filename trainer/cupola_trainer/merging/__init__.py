"""Merge checkpoints of one architecture, one tensor of one layer at a time.

methods.py    the formulas: average, SLERP, TIES, DARE
trimming.py   the thresholds of TIES
tensors.py    the merged model's tensors
"""
