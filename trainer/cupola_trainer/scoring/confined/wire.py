"""JSON messages over a socket, each prefixed by its length in four bytes."""

import json
import os
from typing import Any, NoReturn

LARGEST = 16 * 2**20
"""Maximum bytes per message."""


class Gone(BaseException):
    """The other process ended, or broke the protocol."""


class Wire:
    """One end of the socket."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.gone = False

    def send(self, message: list[Any]) -> None:
        """Raises: Gone; ValueError, for a message that is too large."""
        text = json.dumps(message).encode()
        if len(text) > LARGEST:
            raise ValueError("the value is too large to transfer")
        left = memoryview(len(text).to_bytes(4, "big") + text)
        while left:
            try:
                left = left[os.write(self.descriptor, left) :]
            except OSError:
                self.leave()

    def receive(self) -> list[Any]:
        """Raises: Gone."""
        size = int.from_bytes(self._read(4), "big")
        if size > LARGEST:
            self.leave()
        text = self._read(size)
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            self.leave()
        if not (isinstance(message, list) and message):
            self.leave()
        return message

    def leave(self) -> NoReturn:
        """Stop communicating with the other process. Raises: Gone."""
        self.gone = True
        raise Gone

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = os.read(self.descriptor, min(size, 2**16))
            except OSError:
                self.leave()
            if not part:
                self.leave()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
