"""The preparation from end to end: which steps, in which order, on which machines; `preparation.prepare` starts it."""
