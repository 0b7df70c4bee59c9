"""Stages that make rows: conversations, preference pairs, and what a model writes."""
