"""One worker process of `pool`: calls functions it is sent until its pipe ends."""

import os
import signal
import sys

from cupola_platform.corpus.pool import receive, send


def main() -> None:
    """Serve the parent on stdin and stdout; anything else that prints goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            function, item = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            send(replies, (None, function(item)))
        except Exception as error:  # noqa: BLE001  raised again in the parent
            send(replies, (error, None))


if __name__ == "__main__":
    main()
