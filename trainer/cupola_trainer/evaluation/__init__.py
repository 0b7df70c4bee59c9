"""Evaluate checkpoints.

likelihood.py           held-out bits per byte
responses.py            task accuracy and generations
long_context.py         loss by position and needle retrieval
long_context_page.py    its report
surprise.py             bits per byte of single texts
"""
