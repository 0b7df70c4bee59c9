"""Jobs on nodes that share no folder: each node has its own, and what passes between them goes through the store."""

FINGERPRINTED = False  # moves files
