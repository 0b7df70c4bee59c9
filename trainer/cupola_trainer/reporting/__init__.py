"""A job's reports: metrics.jsonl while it runs, result.json when it is done."""

FINGERPRINTED = False  # only reports progress
