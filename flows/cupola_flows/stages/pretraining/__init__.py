"""Stages from raw text to a pretrained model."""
