"""Hugging Face folders <-> our checkpoints, both ways and bit-exact, one layer at a time.

mapping.py            which tensors hold the same numbers, and in what layout: one table, read in both directions
families.py           ModelConfig -> config.json
reading.py            config.json -> ModelConfig
stored.py             tensors out of a checkpoint of any layout
writing.py            tensors into a checkpoint of any layout, without building the model
filling.py            tensors into a model of any layout
folder.py             files of such a folder, and none outside it
weights.py            tensors out of a transformers folder, checked
safetensors_file.py   tensors into such a folder
exporting.py          checkpoint -> a folder that transformers loads with no other code
importing.py          such a folder -> checkpoint
card.py               the model card that an exported folder carries
"""
