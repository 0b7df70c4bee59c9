"""Cupola's changes to Megatron-Core: importing it without CUDA, and patches after import."""
