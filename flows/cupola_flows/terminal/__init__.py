"""How things look on a terminal."""

FINGERPRINTED = False  # shows
