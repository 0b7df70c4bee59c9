"""What a job trains on: token shards, conversations, preference pairs, and the order in which they are read."""
