"""Batched text generation with the Megatron model itself.

sampling.py       sampling a token from logits
cache.py          the KV cache
batch.py          generation of one batch
generation.py     generation for all prompts, over all ranks: `generate`
stages.py         a training model's pipeline stages, run for generation
decoding.py       fast decoder layers for a single token
loading.py        loading a checkpoint for inference
prompts.py        prompts of a file, as token ids
engine.py         engines that a training job generates responses with: the model itself, or
vllm.py           vLLM with the current weights
continuation.py   continuing one text or chat, in one process
"""
