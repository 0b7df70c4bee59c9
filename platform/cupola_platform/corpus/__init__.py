"""Raw text to clean, deduplicated, tokenized shards.

`config` holds the settings, `sources` reads text, `filters` and `deduplication` clean it (one module per step),
`tokenizer` turns it into shards, `report` writes the report, and `pipeline.preparation.prepare` runs it all and writes
the content of a `tokens` artifact. The steps do not know where they run (`pipeline.runner`). A package imports only the
ones before it: core, config, sources, filters, deduplication, tokenizer, report, pipeline.
"""
