"""Execution of a recipe, and the fingerprints by which finished stages are reused."""

FINGERPRINTED = False  # decides whether a stage runs, not its result
