"""Text out of a model: batched generation on the Megatron model itself.

sampling.py       how a token is chosen from logits
cache.py          keys and values of the tokens seen so far
batch.py          one batch, from prompts to completions
generation.py     all prompts, over all ranks: `generate`
loading.py        a checkpoint, laid out for inference
prompts.py        prompts of a file, as token ids
engine.py         what a training job draws responses with: the model itself, or
vllm.py           vLLM, handed the weights of the moment
continuation.py   one text continued, in one process
"""
