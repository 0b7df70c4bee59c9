"""transformers folders <-> our checkpoints, bit-exact in both directions, one layer at a time.

families/             everything about each model family, one file each; plugins add theirs
family.py             the definition of a family
tensor_rules.py       how checkpoint tensors map to transformers'
position_entries.py   RoPE, windows and dual chunks in config.json
config_json.py        ModelConfig <-> config.json
mapping.py            a model's tensors by transformers' names, and back
checkpoint_reader.py  read tensors from a checkpoint of any layout
checkpoint_writer.py  write a checkpoint of any layout from whole tensors, without building the model
model_reader.py       read whole tensors from a model in training, by transformers' names
model_writer.py       write whole tensors into a model of any layout
huggingface_folder/   transformers folders: files, weights, model card
exporting.py          checkpoint -> folder that plain transformers loads
importing.py          such a folder -> checkpoint
differences.py        distances between two checkpoints' weights
"""
