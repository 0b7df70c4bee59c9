"""One execution of a recipe, and the fingerprints by which stages are found again."""

FINGERPRINTED = False  # decides when a stage runs, not what it gives
