"""Runs a program that a model wrote, in one process, and its tests in another.

`execution.passed` starts it as a top-level package, with a bare interpreter:
it imports the standard library and itself only.
"""
