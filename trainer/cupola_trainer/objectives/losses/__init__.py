"""Losses as pure functions of tensors. Their docstrings give shapes and sources of the formulas."""
