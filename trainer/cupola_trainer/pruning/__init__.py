"""Prune a model to a smaller one (Minitron, Muralidharan et al. 2024; ShortGPT, Men et al. 2024).

importance.py   importance of each layer, channel, head, unit and expert on held-out text
choice.py       which of them to keep
tensors.py      the smaller model's tensors, sliced from the larger one's
"""
