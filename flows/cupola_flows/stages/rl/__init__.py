"""Stages that learn from the responses of the model in training."""
