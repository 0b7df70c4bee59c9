"""All reads of the console: pandas frames for tables and charts, frozen rows for the rest. Nothing here draws.

workspace.py     the open workspace, and the addresses of the servers' own pages
metrics.py       a job's growing metrics.jsonl
runs.py          runs with their stages, progress and logs
checkpoints.py   checkpoints with their key metrics, evaluations, aliases
comparison.py    two checkpoints: differences with intervals, and a verdict
lineage.py       an artifact's ancestry as a graph
corpus.py        the funnel of a `tokens` artifact
settings.py      all settings of a recipe, with their descriptions
"""
