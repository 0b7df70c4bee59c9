"""A model's configuration: shape, positions, presets and parameter counts. Imports no torch."""
