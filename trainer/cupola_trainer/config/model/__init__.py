"""What a model is: its shape, its positions, its presets, its sizes; and what becomes of these. Imports no torch."""
