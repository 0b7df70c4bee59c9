"""The tests' process: it holds the tests, and reaches the program through stand-ins alone."""

import builtins
import importlib
import io
import sys
import types
from collections.abc import Iterator
from typing import Any

from .dialogue import Dialogue
from .remote import Remote
from .wire import Gone

MODULE = "tests"
"""What `__module__` is of the classes that tests define."""
ATTRIBUTES = ("getattr", "setattr", "delattr")
TAKEN = {*dir(builtins), *sys.stdlib_module_names}


class Tester(Dialogue):
    """Lets the program call what a test hands it, and touch nothing behind that."""

    def may(self, what: str, args: list[Any]) -> bool:
        if what == "readline":
            return True
        if not self.values.lent(args[0]):  # `exec` by its name, say
            return False
        if what in ATTRIBUTES:
            return isinstance(args[1], str) and not args[1].startswith("_") and _open_to_the_program(args[0])
        return what != "dir"

    def own(self, what: str, args: list[Any]) -> Any:
        if what != "readline":
            raise LookupError(what)
        return sys.stdin.readline()

    def heard(self, text: str) -> None:
        sys.stdout.write(text)


class Names(dict[str, Any]):
    """A test's names: its own, then the program's, looked up when they are used."""

    def __init__(self, tester: Tester, hidden: set[str]) -> None:
        super().__init__(__name__=MODULE, __builtins__=builtins)
        self.tester, self.hidden = tester, hidden

    def __missing__(self, name: str) -> Any:
        if name in self.hidden:
            if hasattr(builtins, name):
                raise KeyError(name)
            return importlib.import_module(name)
        value = self.tester.ask("name", name)
        if type(value) is Remote:
            self[name] = value
        return value


def run_tests(tests: list[str], descriptor: int) -> Iterator[bool]:
    """Whether each test holds, in order; ends early when the program does."""
    tester = Tester(descriptor)
    sys.stdin, sys.stdout = io.StringIO(), io.StringIO()
    try:
        theirs = {*tester.ask("names")}
        for test in tests:
            held = _holds(test, tester, theirs)
            if tester.wire.gone:
                return
            yield held
    except Gone:
        return


def _holds(test: str, tester: Tester, theirs: set[str]) -> bool:
    try:
        code = compile(test, "<test>", "exec")
        exec(code, Names(tester, _hidden(code, theirs)))  # noqa: S102 - this is what the process is for
    except BaseException:  # noqa: BLE001 - whatever is raised, the test does not hold
        return False
    return True


def _hidden(code: types.CodeType, theirs: set[str]) -> set[str]:
    """The program's names that this test does not see: those of Python's own functions and modules.

    A program with an `abs` or a `math` of its own would judge itself. Where a test uses no other name of the program's,
    as `assert sum(1, 2) == 3`, the program's it is.
    """
    used = _names(code) & theirs
    return used & TAKEN if used - TAKEN else set()


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return {*code.co_names}.union(*map(_names, inner))


def _open_to_the_program(value: Any) -> bool:
    """Whether the program may see the public attributes of an object: of a test's own class, or a file in memory."""
    kind = value if isinstance(value, type) else type(value)
    return kind.__module__ in (MODULE, "_io")
