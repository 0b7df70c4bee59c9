"""The stand-in of an object in the other process."""

import operator
from collections.abc import Callable
from typing import Any, Protocol


class Peer(Protocol):
    """What a stand-in asks the other process through."""

    def ask(self, what: str, *args: Any) -> Any:
        """The value that the other process gives. Raises: what was raised there."""

    def call(self, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The same, of a call."""


class Remote:
    """Hands everything on to the object it stands for, except comparison and arithmetic with a value of this process.

    An object that is equal to everything, or whose difference to any number is zero, would pass every test otherwise.
    So what has no plain value is equal to none; an object whose class extends a plain type is compared by its plain
    value, which it must name before it learns what it is compared with.
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
"""What is done to an object by the process that holds it."""
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
    """The number of its object in the other process."""
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
            return NotImplemented  # == is False then, and the rest a TypeError
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
