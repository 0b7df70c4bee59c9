"""Rows of files that others wrote: JSON lines, JSON, Parquet, Arrow, CSV, TSV, each also compressed.

The format is detected from the first bytes, and from the name only if they are ambiguous. A bad row is returned with
its reason so that callers can count it, and a damaged file ends in such a row.
"""
