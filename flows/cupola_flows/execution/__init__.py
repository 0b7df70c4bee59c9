"""What carries a stage out: its context, its jobs, their restarts, their checkpoints in the store."""

FINGERPRINTED = False  # starts jobs, follows them and carries their files
