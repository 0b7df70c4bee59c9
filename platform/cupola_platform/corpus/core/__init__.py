"""Shared by all corpus packages: documents between steps, their files, shingles, tallies, Qwen's token format."""
