"""Attention and positions: whole rows, several texts in a row, context-parallel ranks, windows, soft caps, dual
chunks."""
