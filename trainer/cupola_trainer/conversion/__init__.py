"""Hugging Face folders <-> our checkpoints, both ways and bit-exact.

mapping.py     which tensors hold the same numbers, and in what layout: one table, read in both directions
families.py    config.json <-> ModelConfig
tensors.py     whole tensors out of a checkpoint of any layout, and into a model of any layout
exporting.py   checkpoint -> a folder that transformers loads with no other code
importing.py   such a folder -> checkpoint
card.py        the model card that an exported folder carries
"""
