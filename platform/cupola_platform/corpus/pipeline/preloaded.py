"""Imports that every worker process needs, done once by the fork server."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import datatrove.executor.local  # noqa: F401

import cupola_platform.corpus.pipeline.driver  # noqa: F401  the workers import it as their main module
from cupola_platform.corpus.core.shingles import shingle
from cupola_platform.corpus.filters.language import identifier

identifier()
shingle(["a"], 1)  # its tables
