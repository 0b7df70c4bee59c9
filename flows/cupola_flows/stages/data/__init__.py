"""Stages that make training data: conversations, preference pairs and synthetic text."""
