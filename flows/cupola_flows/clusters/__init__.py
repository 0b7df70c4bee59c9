"""The clusters of `cupola.toml`: what they answer now, and a probe of their nodes."""
