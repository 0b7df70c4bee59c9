"""Every read of the console. Frames (pandas) for tables and charts, frozen rows for the rest; nothing here draws.

workspace.py     the opened workspace, and where the servers' own pages are
metrics.py       a job's metrics.jsonl, while it grows
runs.py          runs with their stages, how far each is, its log
checkpoints.py   checkpoints with their key numbers, evaluations, aliases
comparison.py    two checkpoints: differences with intervals, and the verdict in words
lineage.py       what an artifact was made from, as a graph
corpus.py        the funnel of a `tokens` artifact
settings.py      every setting of a recipe, with its meaning
"""
