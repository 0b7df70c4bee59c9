"""What Cupola changes in Megatron-Core: how it is imported on a machine without CUDA,
and what is patched after import."""
