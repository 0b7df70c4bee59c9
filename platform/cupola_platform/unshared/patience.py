"""Waiting for a store that does not answer for a while."""

import time
from collections.abc import Callable
from typing import TypeVar

from cupola_platform.errors import StoreError

PATIENCE = 600.0
"""Seconds for which a store that does not answer is asked again: the ranks are worth waiting for."""
RETRY_EVERY = 5.0

T = TypeVar("T")


def insist(work: Callable[[], T], say: Callable[[str], None] = lambda line: None) -> T:
    """Do some work with the store, again if it fails. Raises StoreError after `PATIENCE` seconds.

    Args:
        say: called with a line before each further try.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return work()
        except StoreError as error:
            if time.monotonic() > until:
                raise
            say(f"cupola: will retry: {error}")
        time.sleep(RETRY_EVERY)
