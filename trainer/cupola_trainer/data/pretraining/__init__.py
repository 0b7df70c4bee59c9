"""Packed tokens: how they are read, cut, copied and masked."""
