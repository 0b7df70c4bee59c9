"""Output on a terminal."""

FINGERPRINTED = False  # display only
