"""The stages of a recipe: one file a kind, which holds what a person may set, what the stage takes, what it gives,
and how.

base.py      what every stage is; training.py what every one that trains is
table.py     all kinds, found by looking into the folders
"""
