"""Encoding values for the other process: plain values by copy, everything else as a handle.

The receiver compares copies, so a program's own `__eq__` is never involved.
"""

import builtins
import collections
import datetime
import decimal
import fractions
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

from .remote import Peer, Remote, number_of

CONTAINERS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "list": (list, list),
    "tuple": (tuple, tuple),
    "set": (set, set),
    "frozenset": (frozenset, frozenset),
    "deque": (collections.deque, collections.deque),
    "dict": (dict, dict),
    "counter": (collections.Counter, lambda pairs: collections.Counter(dict(pairs))),
    "ordered": (collections.OrderedDict, collections.OrderedDict),
    "defaultdict": (collections.defaultdict, dict),
}
"""By tag: the type, and its constructor from items (pairs for mappings)."""
SCALARS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "int": (int, hex, lambda text: int(text, 16)),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "bytearray": (bytearray, bytearray.hex, bytearray.fromhex),
    "complex": (complex, lambda value: [value.real, value.imag], lambda pair: complex(*pair)),
    "range": (range, lambda value: [value.start, value.stop, value.step], lambda triple: range(*triple)),
    "slice": (slice, lambda value: [value.start, value.stop, value.step], lambda triple: slice(*triple)),
    "fraction": (fractions.Fraction, str, fractions.Fraction),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "timedelta": (datetime.timedelta, lambda value: [value.days, value.seconds, value.microseconds],
                  lambda triple: datetime.timedelta(*triple)),
}  # fmt: skip
"""By tag: the type, its conversion to JSON, and back."""
CONTAINER_TAGS = {kind: tag for tag, (kind, _) in CONTAINERS.items()}
SCALAR_TAGS = {kind: tag for tag, (kind, *_) in SCALARS.items()}
BASES = (int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset)
BY_NAME = (type, types.BuiltinFunctionType)
SMALL = 2**63


class Values:
    """Encodes and decodes values for one of the two processes."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.objects: list[Any] = []
        """Objects that the other process has handles to, by number."""
        self.numbers: dict[int, int] = {}
        self.remotes: dict[int, Remote] = {}
        """Proxies of the other process's objects, by number; one per object, so that `is` works."""
        self.errors: dict[int, type[BaseException]] = {}
        """Proxies of the other process's exception classes, by number."""

    def encode(self, value: Any) -> Any:
        """`value` as JSON-compatible data."""
        kind = type(value)
        if kind in (type(None), bool, float, str) or (kind is int and -SMALL < value < SMALL):
            return value
        if tag := CONTAINER_TAGS.get(kind):
            if isinstance(value, dict):
                return [tag, [[self.encode(key), self.encode(item)] for key, item in value.items()]]
            return [tag, [self.encode(item) for item in value]]
        if tag := SCALAR_TAGS.get(kind):
            return [tag, SCALARS[tag][1](value)]
        if kind is Remote:
            return ["yours", number_of(value)]
        if kind is types.ModuleType and _in_library(value.__name__):
            return ["module", value.__name__]
        if isinstance(value, BY_NAME) and getattr(builtins, name := str(getattr(value, "__name__", "")), None) is value:
            return ["builtin", name]
        if isinstance(value, BaseException):
            return ["error", self.encode(kind), self.encode(value.args), self.encode(vars(value))]
        if _is_error_class(value):
            return self._encode_error_class(value)
        return ["mine", self._number(value), isinstance(value, BASES)]

    def decode(self, encoded: Any) -> Any:
        """The inverse of `encode`. Raises: any Exception, for malformed data."""
        if not isinstance(encoded, list):
            return encoded
        tag, *content = encoded
        if container := CONTAINERS.get(tag):
            if issubclass(container[0], dict):
                return container[1]([(self.decode(key), self.decode(item)) for key, item in content[0]])
            return container[1]([self.decode(item) for item in content[0]])
        if scalar := SCALARS.get(tag):
            return scalar[2](content[0])
        if tag == "yours":
            return self.objects[content[0]]
        if tag == "module" and _in_library(content[0]):
            return importlib.import_module(content[0])
        if tag == "builtin" and isinstance(value := getattr(builtins, content[0]), BY_NAME):
            return value
        if tag == "error":
            return self._error(*map(self.decode, content))
        if tag == "error class":
            return self._error_class(*content)
        if tag == "library error":
            return _library_error(*content)
        if tag == "mine":
            number = int(content[0])
            return self.remotes.setdefault(number, Remote(self.peer, number, bool(content[1])))
        raise ValueError("no such value")

    def _number(self, value: Any) -> int:
        """The number of an object held here."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.numbers[id(value)]

    def lent(self, value: Any) -> bool:
        """Whether the other process has a handle to this very object."""
        return id(value) in self.numbers

    def _encode_error_class(self, value: type[BaseException]) -> list[Any]:
        for number, stand_in in self.errors.items():
            if stand_in is value:
                return ["yours", number]
        if _in_library(value.__module__):
            return ["library error", value.__module__, value.__name__]
        bases = [self.encode(base) for base in value.__bases__ if issubclass(base, BaseException)]
        return ["error class", self._number(value), value.__name__, bases]

    def _error_class(self, number: int, name: str, bases: list[Any]) -> type[BaseException]:
        """A local class that represents the other process's exception class."""
        if number not in self.errors:
            parents = tuple(self.decode(base) for base in bases)
            self.errors[number] = type(str(name), tuple(filter(_is_error_class, parents)), {})
        return self.errors[number]

    @staticmethod
    def _error(kind: Any, args: Any, attributes: Any) -> BaseException:
        if not _is_error_class(kind):  # such as `exec`, which would run here
            raise TypeError("no exception")
        error: BaseException = kind(*args)
        vars(error).update(attributes)
        return error


def plain(value: Any) -> Any:
    """The plain value of an object whose class extends a plain type, such as a namedtuple."""
    return next(base for base in BASES if isinstance(value, base))(value)


def _is_error_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _in_library(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _library_error(module: str, name: str) -> type[BaseException]:
    error_class = getattr(importlib.import_module(module), name) if _in_library(module) else None
    if not _is_error_class(error_class):
        raise ValueError("no exception of the standard library")
    return error_class  # type: ignore[return-value]
