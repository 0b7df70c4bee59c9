"""The whole preparation: its steps, their order and where they run. `preparation.prepare` starts it."""
