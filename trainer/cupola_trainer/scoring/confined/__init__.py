"""Runs a model-written program in one process and its tests in another.

`execution.passed` starts it as a top-level package with a bare interpreter, so it imports only the standard library and
itself.
"""
