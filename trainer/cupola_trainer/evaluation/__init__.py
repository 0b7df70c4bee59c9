"""How good a checkpoint is.

likelihood.py   held-out bits per byte
answers.py      task accuracy and generations
"""
