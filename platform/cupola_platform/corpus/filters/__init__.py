"""Steps that process one document at a time: they drop, repair, mask or score it."""
