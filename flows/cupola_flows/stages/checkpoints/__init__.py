"""Stages that make a checkpoint out of others, without training."""
