"""From clean documents to token shards: the vocabulary, its training, fast encoding, Megatron shards."""
