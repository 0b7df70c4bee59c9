"""The files of a folder that transformers loads: read from a stranger's, written to ours."""
