"""Stages that lead from raw text to a pretrained model."""
