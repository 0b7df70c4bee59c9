"""How good a checkpoint is. `intervals` and `tasks` import no torch: flows call them in process.

tasks.py        questions whose answers a program scores
intervals.py    how sure an accuracy is
likelihood.py   held-out bits per byte
answers.py      task accuracy and generations
"""
