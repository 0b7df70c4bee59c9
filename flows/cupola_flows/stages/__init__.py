"""The stages of a recipe: one file per kind, with its settings, its inputs, its artifact and how it is made.

base.py      the base of every stage; training.py that of every stage that trains
table.py     all kinds, found by walking these folders
"""
