"""A proxy of an object in the other process."""

import operator
from collections.abc import Callable
from typing import Any, Protocol


class Peer(Protocol):
    """A proxy's connection to the other process."""

    def ask(self, what: str, *args: Any) -> Any:
        """The result from the other process. Raises: its exception."""

    def call(self, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The result of a call there."""


class Remote:
    """Forwards every operation to its object, except comparison and arithmetic with values of this process.

    Otherwise an object that equals everything, or whose difference to any number is zero, would pass every test. So
    an object without a plain value equals none of this process's values; an object whose class extends a plain type is
    compared by its plain value, which it must reveal before it sees the other operand.
    """

    __slots__ = ("__extends", "__number", "__peer")

    def __init__(self, peer: Peer, number: int, extends: bool) -> None:
        object.__setattr__(self, "_Remote__peer", peer)
        object.__setattr__(self, "_Remote__number", number)
        object.__setattr__(self, "_Remote__extends", extends)

    def __getattr__(self, name: str) -> Any:
        return self.__peer.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__peer.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self.__peer.ask("delattr", self, name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.__peer.call(self, args, named)

    def __contains__(self, item: Any) -> bool:
        if isinstance(item, Remote):
            return bool(self.__peer.ask("contains", self, item))
        return any(item is one or item == one for one in iter(self))  # type: ignore[call-overload]

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and bool(self.__peer.ask("isinstance", value, self))

    def __subclasscheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and bool(self.__peer.ask("issubclass", value, self))

    def __exit__(self, kind: object, value: object, traceback: object) -> bool:
        return bool(self.__peer.ask("exit", self, value))


FORWARDED: dict[str, Callable[..., Any]] = {
    "len": len, "iter": iter, "next": next, "bool": bool, "str": str, "repr": repr, "hash": hash, "int": int,
    "float": float, "complex": complex, "index": operator.index, "abs": abs, "round": round, "reversed": reversed,
    "dir": dir, "neg": operator.neg, "pos": operator.pos, "invert": operator.invert, "getitem": operator.getitem,
    "setitem": operator.setitem, "delitem": operator.delitem, "format": format,
    "enter": lambda value: value.__enter__(),
}  # fmt: skip
"""Operations performed by the process that holds the object."""
COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
COMPUTED = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and_",
    "or_",
    "xor",
    "lshift",
    "rshift",
)


def number_of(remote: Remote) -> int:
    """The object's number in the other process."""
    number: int = object.__getattribute__(remote, "_Remote__number")
    return number


def _forward(what: str) -> Callable[..., Any]:
    return lambda self, *args: object.__getattribute__(self, "_Remote__peer").ask(what, self, *args)


def _pairwise(what: str, mirrored: bool = False) -> Callable[[Remote, Any], Any]:
    function: Callable[[Any, Any], Any] = getattr(operator, what)

    def method(self: Remote, other: Any) -> Any:
        peer: Peer = object.__getattribute__(self, "_Remote__peer")
        if type(other) is Remote:
            return peer.ask(what, other, self) if mirrored else peer.ask(what, self, other)
        if not object.__getattribute__(self, "_Remote__extends"):
            return NotImplemented  # makes == False and the others a TypeError
        value = peer.ask("plain", self)
        if type(value) is Remote:
            return NotImplemented
        return function(other, value) if mirrored else function(value, other)

    return method


for _what in FORWARDED:
    setattr(Remote, f"__{_what}__", _forward(_what))
for _what in COMPARED:
    setattr(Remote, f"__{_what}__", _pairwise(_what))
for _what in COMPUTED:
    setattr(Remote, f"__{_what.rstrip('_')}__", _pairwise(_what))
    setattr(Remote, f"__r{_what.rstrip('_')}__", _pairwise(_what, mirrored=True))
