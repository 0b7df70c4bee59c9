"""Packed tokens: reading, splitting, copying and masking."""
