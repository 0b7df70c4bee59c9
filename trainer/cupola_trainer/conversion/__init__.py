"""transformers' folders <-> our checkpoints, both ways and bit-exact, one layer at a time.

families/             all that is known of each model family, a file each; plugins add theirs
family.py             what such a file gives
tensor_rules.py       how a checkpoint's tensors and transformers' are made of each other
position_entries.py   RoPE, windows and dual chunks in config.json
config_json.py        ModelConfig <-> config.json
mapping.py            a model's tensors by transformers' names, and back
checkpoint_reader.py  tensors out of a checkpoint of any layout
checkpoint_writer.py  a checkpoint of any layout out of whole tensors, without building the model
model_reader.py       whole tensors out of a model in training, by transformers' names
model_writer.py       whole tensors into a model of any layout
huggingface_folder/   transformers' folders: files, weights, model card
exporting.py          checkpoint -> a folder that transformers loads with no other code
importing.py          such a folder -> checkpoint
differences.py        how far apart two checkpoints' weights are
"""
