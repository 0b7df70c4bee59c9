"""A model's outputs for given batches, in any layout, without an objective."""
