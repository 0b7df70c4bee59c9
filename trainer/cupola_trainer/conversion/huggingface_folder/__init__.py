"""The files of a transformers folder: reading untrusted ones, writing ours."""
