"""Training data: token shards, conversations, preference pairs, and the order in which they are read."""
