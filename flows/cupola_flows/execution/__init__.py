"""Execution of a stage: its context, its jobs, their restarts, their checkpoints in the store."""

FINGERPRINTED = False  # starts and follows jobs, and copies their files
