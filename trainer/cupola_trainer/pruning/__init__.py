"""A smaller model out of a larger one (Minitron, Muralidharan et al. 2024; ShortGPT, Men et al. 2024).

importance.py   how much each layer, channel, head, unit and expert matters to held-out text
choice.py       which of them stay
tensors.py      the smaller model's tensors, cut from the larger one's
"""
