"""The tests' process: holds the tests, and accesses the program only through proxies."""

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
"""`__module__` of classes that tests define."""
ATTRIBUTES = ("getattr", "setattr", "delattr")
TAKEN = {*dir(builtins), *sys.stdlib_module_names}


class Tester(Dialogue):
    """Lets the program call what a test passes to it, and access nothing beyond."""

    def may(self, what: str, args: list[Any]) -> bool:
        if what == "readline":
            return True
        if not self.values.lent(args[0]):  # such as `exec` by name
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
    """A test's namespace: its own names, then the program's, looked up lazily."""

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
    """Whether each test passes, in order; stops early if the program exits."""
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
        exec(code, Names(tester, _hidden(code, theirs)))  # noqa: S102 - the purpose of this process
    except BaseException:  # noqa: BLE001 - any exception fails the test
        return False
    return True


def _hidden(code: types.CodeType, theirs: set[str]) -> set[str]:
    """The program's names that the test does not see: those of built-ins and standard modules.

    A program that defines its own `abs` or `math` could otherwise affect its verdict. A test that uses no other name of
    the program, such as `assert sum(1, 2) == 3`, does see them.
    """
    used = _names(code) & theirs
    return used & TAKEN if used - TAKEN else set()


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return {*code.co_names}.union(*map(_names, inner))


def _open_to_the_program(value: Any) -> bool:
    """Whether the program may access an object's public attributes: instances of test classes and in-memory files."""
    kind = value if isinstance(value, type) else type(value)
    return kind.__module__ in (MODULE, "_io")
