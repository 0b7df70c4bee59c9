"""Raw text to clean, deduplicated, tokenized shards.

`config` holds the settings, `sources` reads text, `filters` and `deduplication` clean it (a module a step), `tokenizer`
turns it into shards, `report` writes the account, and `pipeline.preparation.prepare` runs it all and writes the content
of a `tokens` artifact. *What* is done (the steps) knows nothing of *where* it runs (`pipeline.runner`). A room imports
only the rooms before it: core, config, sources, filters, deduplication, tokenizer, report, pipeline.
"""
