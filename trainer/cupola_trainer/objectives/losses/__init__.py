"""Losses as pure functions of tensors: shapes and sources of the formulas are in their docstrings."""
