"""Stages that evaluate and promote checkpoints."""
