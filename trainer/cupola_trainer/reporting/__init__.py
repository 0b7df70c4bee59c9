"""What a job says of itself: metrics.jsonl while it runs, result.json when it is done."""

FINGERPRINTED = False  # tells of progress
