"""How good a checkpoint is.

likelihood.py   held-out bits per byte
responses.py    task accuracy and generations
"""
