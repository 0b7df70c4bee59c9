"""Remote calls between the two processes, in both directions."""

import operator
from collections.abc import Callable
from typing import Any

from .remote import COMPARED, COMPUTED, FORWARDED
from .values import Values, plain
from .wire import Gone, Wire

DONE: dict[str, Callable[..., Any]] = {
    **FORWARDED,
    **{what: getattr(operator, what) for what in (*COMPARED, *COMPUTED, "contains")},
    "plain": plain,
    "isinstance": isinstance,
    "issubclass": issubclass,
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "exit": lambda value, error: value.__exit__(error and type(error), error, None),
}
MUTABLE = (list, dict, set, bytearray)


class Dialogue:
    """One process's side. A call passes arguments by copy, and copies mutations back."""

    def __init__(self, descriptor: int) -> None:
        self.wire = Wire(descriptor)
        self.values = Values(self)

    def may(self, what: str, args: list[Any]) -> bool:
        """Whether the other process may request this operation."""
        raise NotImplementedError

    def own(self, what: str, args: list[Any]) -> Any:
        """Operations that only this side supports. Raises: LookupError."""
        raise NotImplementedError

    def written(self) -> str:
        """Text written to standard output here since the last reply."""
        return ""

    def heard(self, text: str) -> None:
        """Receive text that the other process wrote to its standard output."""

    def ask(self, what: str, *args: Any) -> Any:
        """Request an operation from the other process. Raises: its exception; Gone."""
        return self._ask(what, list(args))

    def call(self, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a function there; its changes to lists, dictionaries and sets among the arguments are applied here."""
        given = [*args, *named.values()]
        return self._ask("call", [function, list(named), *given], given)

    def serve(self) -> None:
        """Serve requests until the other process is gone."""
        while True:
            self._answer(self.wire.receive())

    def _ask(self, what: str, args: list[Any], given: list[Any] | None = None) -> Any:
        if self.wire.gone:
            raise Gone
        self.wire.send(["ask", what, [self.values.encode(arg) for arg in args]])
        while (message := self.wire.receive())[0] == "ask":
            self._answer(message)
        try:
            outcome, encoded, changes, text = message
            self.heard(str(text))
            value = self.values.decode(encoded)
            for place, left in changes:
                _become((given or [])[place], self.values.decode(left))
        except Exception:  # noqa: BLE001 - a malformed message: the other process broke the protocol
            self.wire.leave()
        if outcome == "raised":
            raise value if isinstance(value, BaseException) else RuntimeError("no exception")
        return value

    def _answer(self, message: list[Any]) -> None:
        changes: list[Any] = []
        try:
            _, what, call = message
            args = [self.values.decode(arg) for arg in call]
            value = self._do(what, args)
            if what == "call":
                changes = self._changes(args[2:], call[2:])
            answer = ["gave", self.values.encode(value), changes, self.written()]
        except Gone:
            raise
        except BaseException as error:  # noqa: BLE001 - any exception is re-raised there
            answer = ["raised", self._encode_error(error), changes, self.written()]
        try:
            self.wire.send(answer)
        except ValueError as error:
            self.wire.send(["raised", self._encode_error(error), [], ""])

    def _do(self, what: str, args: list[Any]) -> Any:
        if not self.may(what, args):
            raise PermissionError(f"the program may not {what} this")
        if what == "call":
            function, names, *given = args
            count = len(given) - len(names)
            return function(*given[:count], **dict(zip(names, given[count:], strict=True)))
        return DONE[what](*args) if what in DONE else self.own(what, args)

    def _changes(self, args: list[Any], before: list[Any]) -> list[Any]:
        """Arguments that the call changed, by position."""
        now = [(place, self.values.encode(arg)) for place, arg in enumerate(args) if type(arg) in MUTABLE]
        return [[place, left] for place, left in now if left != before[place]]

    def _encode_error(self, error: BaseException) -> Any:
        try:
            return self.values.encode(error)
        except Exception:  # noqa: BLE001 - the exception cannot be encoded
            return self.values.encode(RuntimeError("an exception that cannot be transferred"))


def _become(old: Any, new: Any) -> None:
    """Replace the contents of a mutable value in place."""
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)
