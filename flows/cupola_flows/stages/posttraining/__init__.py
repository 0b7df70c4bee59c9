"""Stages that fine-tune and align on rows that are there: SFT, reward models, DPO."""
