"""Steps that look at one document at a time: drop it, mend it, mask it, or score it."""
