"""OpenAssistant's message trees, whole or one message per row, as conversations and pairs. Imports no torch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from cupola_platform.json_lines import Row

Place = TypeVar("Place")
Tree = dict[str, Any]
Made = Iterator[Row]


def grown(rows: Iterable[tuple[Place, Row]], make: Callable[[Tree], Made]) -> Iterator[tuple[Place, int, Row]]:
    """Expand trees into the rows that `make` yields, numbered from 1; other rows pass through with number 0.

    Rows that are single messages are collected and joined by `parent_id` at the end.
    """
    single: dict[str, tuple[Place, Tree]] = {}
    for place, row in rows:
        tree: Tree = row["prompt"] if _is_tree(row.get("prompt")) else row
        if tree is not row or (_is_tree(row) and "replies" in row):
            yield from _made(place, tree, make)
        elif _is_tree(row):
            single[row["message_id"]] = (place, {**row, "replies": []})
        else:
            yield place, 0, row
    for place, message in single.values():
        parent = message.get("parent_id")
        if isinstance(parent, str) and parent in single:
            single[parent][1]["replies"].append(message)
        elif parent is not None:
            yield place, 0, {"message_without_its_parent": True}
    for place, message in single.values():
        if message.get("parent_id") is None:
            yield from _made(place, message, make)


def _is_tree(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("message_id"), str) and {"text", "role"} <= set(value)


def _made(place: Place, tree: Tree, make: Callable[[Tree], Made]) -> Iterator[tuple[Place, int, Row]]:
    for number, row in enumerate(make(tree), start=1):
        yield place, number, row


def best_path(tree: Tree) -> Made:
    """One conversation: the best reply at each step, up to the last assistant message."""
    path: list[Tree] = [tree]
    while replies := _replies(path[-1]):
        path.append(replies[0])
    while len(path) > 1 and path[-1]["role"] != "assistant":
        path.pop()
    yield {"messages": list(map(_message, path))}


def ranked_pairs(tree: Tree) -> Made:
    """The best and worst reply to each prompt with replies of different ranks; one bad row if there are none."""
    pairs = list(_pairs(tree, []))
    yield from pairs or [{"tree_without_ranked_replies": True}]


def _pairs(message: Tree, before: list[Row]) -> Made:
    path = [*before, _message(message)]
    replies = _replies(message)
    ranked = [reply for reply in replies if isinstance(reply.get("rank"), int | float)]
    if message["role"] != "assistant" and len(ranked) > 1 and ranked[0]["rank"] < ranked[-1]["rank"]:
        yield {"messages": path, "chosen": ranked[0]["text"], "rejected": ranked[-1]["text"]}
    for reply in replies:
        yield from _pairs(reply, path)


def _replies(message: Tree) -> list[Tree]:
    """Replies that are neither deleted nor rejected in review, best first; those without a rank come last."""
    replies = message.get("replies")
    kept = [
        reply
        for reply in (replies if isinstance(replies, list) else ())
        if _is_tree(reply)
        if not reply.get("deleted") and reply.get("review_result") is not False
    ]
    return sorted(kept, key=lambda reply: reply["rank"] if isinstance(reply.get("rank"), int | float) else float("inf"))


def _message(message: Tree) -> Row:
    return {"role": message["role"], "content": message["text"]}
