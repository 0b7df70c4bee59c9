"""Scoring responses by program: tasks, sandboxed unit tests, confidence intervals. Imports no torch."""
