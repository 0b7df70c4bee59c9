"""Stages that fine-tune and align on existing data: SFT, reward models, DPO."""
