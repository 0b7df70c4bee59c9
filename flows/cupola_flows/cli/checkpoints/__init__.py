"""The commands of `cupola checkpoint`."""
