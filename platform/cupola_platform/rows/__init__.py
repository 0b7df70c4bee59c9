"""Rows of files that others wrote: JSON lines, JSON, Parquet, Arrow, CSV, TSV, each also compressed.

What a file holds is decided by its first bytes; its name is asked only where they leave it open. A bad row is given
with the reason why it is none, so that whoever reads can count it, and a damaged file ends in such a row.
"""
