"""Raw text to clean, deduplicated, tokenized shards.

`config` says what is wanted, `sources` reads it, one module a step cleans it, `preparation.prepare` runs it all and
writes the content of a `tokens` artifact. *What* is done (the steps) knows nothing of *where* it runs (the engine).
"""
