"""Recognizing a third-party row as a conversation or a preference pair, by its values, not its column order or count.

docs/post-training.md has a table of published sets and their shapes. Imports no torch.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from cupola_platform.conversation import as_response, normal, normal_tools, problem
from cupola_platform.json_lines import BadLineError, Row, has_lone_surrogate
from cupola_platform.rows.messages import calls_of, messages_of, tools_of
from cupola_platform.rows.values import decoded, number, plain

CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat", "contents", "data")
"""Columns that hold whole conversations."""

PROMPT_COLUMNS = ("prompt", "instruction", "question", "problem", "query", "input", "inputs", "context")
"""Columns that hold prompts: text or messages."""

RESPONSE_COLUMNS = (
    "completion", "response", "output", "answer", "generated_solution", "solution", "answers", "targets", "target",
)  # fmt: skip
"""Columns that hold responses: text, messages, or tool calls."""

PAIRS = (
    ("chosen", "rejected"), ("preferred_output", "non_preferred_output"), ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),
)  # fmt: skip
"""Columns that hold a better and a worse response."""

RANKED = (("response_1", "response_2", "preference_strength"), ("response1", "response2", "overall_preference"))
"""Columns that hold two responses, and which is better: below 0 the first, above 0 the second (HelpSteer2 and 3)."""

TRANSCRIPTS = (re.compile(r"(?:\A|\n\n)(Human|Assistant):"), re.compile(r"### (Human|Assistant):"))
"""Conversations in a single text: hh-rlhf's and OpenAssistant-Guanaco's."""

SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def conversation(row: Row) -> Row:
    """A row's {"messages"}, plus "tools", "tag", "margin", "tests" if present.

    Raises:
        BadLineError: the row is unusable; the reason is one of `conversation.problem`'s, "not_text", "malformed_tools",
            "malformed_tests", "lone_surrogate" or "nested_too_deep".
    """
    row = plain(row)
    messages = _first(row, CONVERSATIONS) or _transcript(row.get("text")) or _transcript(row.get("transcript"))
    if not messages or messages[-1]["role"] != "assistant":
        messages = (messages or _prompt(row)) + _response(row)
    if not messages:
        raise BadLineError("malformed", f"no conversation in its columns: {', '.join(row) or 'it has none'}")
    messages = _with_system(row, messages)
    extras = _extras(row)
    return _without_surrogates({"messages": _checked(messages, extras.get("tools"))} | extras)


def pair(row: Row) -> Row:
    """A row's {"messages" (the prompt), "chosen", "rejected", "chosen_score", "rejected_score"}, plus the extras of
    `conversation`.

    A response is its text, or a list with its one message if that holds more than text.

    Raises:
        BadLineError: as `conversation`; or "equal_responses", "other_prompts" (the two differ before their last turns),
            "no_preference" (neither is better).
    """
    row = plain(row)
    better, worse, scores = _sides(row)
    asked = _prompt_messages(row)
    chosen, rejected = (_with_system(row, _as_conversation(side, asked)) for side in (better, worse))
    if chosen[:-1] != rejected[:-1]:
        raise BadLineError("other_prompts", "the two conversations differ before their last turns")
    extras = _extras(row)
    chosen, rejected = (_checked(side, extras.get("tools")) for side in (chosen, rejected))
    if chosen == rejected:
        raise BadLineError("equal_responses", "both responses are the same")
    return _without_surrogates(
        {
            "messages": chosen[:-1],
            "chosen": as_response(chosen[-1]),
            "rejected": as_response(rejected[-1]),
            "chosen_score": scores[0],
            "rejected_score": scores[1],
        }
        | extras
    )


def prompt_of(row: Row) -> str:
    """A key that identifies a prompt: everything before the last turn, and the tools."""
    return json.dumps([row["messages"][:-1], row.get("tools") or []], ensure_ascii=False, sort_keys=True)


def _checked(messages: Sequence[Row], tools: Any) -> list[Row]:
    """Messages in normal form."""
    if reason := problem(messages, tools=tools):
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise BadLineError(reason, f"turns of {roles}"[:120])
    normalized: list[Row] = normal(messages)
    return normalized


def _without_surrogates(made: Row) -> Row:
    """Refuse lone surrogates, also in text that was JSON inside JSON."""
    if has_lone_surrogate(made):
        raise BadLineError("lone_surrogate", "half of a surrogate pair in a string")
    return made


def _first(row: Row, columns: Iterable[str]) -> list[Row]:
    """Messages of the first column that holds any."""
    return next((messages for name in columns if (messages := messages_of(row.get(name)))), [])


def _prompt(row: Row) -> list[Row]:
    """The prompt as messages, after a `history` of pairs if present."""
    for name in PROMPT_COLUMNS:
        value = row.get(name)
        if messages := messages_of(value):
            return messages
        if isinstance(value, str) and value.strip():
            if name == "instruction":  # Alpaca's, Dolly's
                more = (row.get("input"), row.get("context"))
                value = "\n\n".join([value, *(part for part in more if isinstance(part, str) and part)])
            return [*_history(row.get("history")), {"role": "user", "content": value}]
    return []


def _history(value: Any) -> list[Row]:
    pairs = decoded(value)
    if not isinstance(pairs, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in pairs):
        return []
    return messages_of([text for turn in pairs for text in turn]) or []


def _response(row: Row) -> list[Row]:
    """The response as messages, preferring columns that are not empty."""
    for value in sorted((row[name] for name in RESPONSE_COLUMNS if name in row), key=lambda held: held in ("", [])):
        if messages := messages_of(value):
            return messages
        calls = decoded(value) if row.get("tools") else None
        if isinstance(calls, list) and calls and all(isinstance(call, dict) and "name" in call for call in calls):
            return [{"role": "assistant", "content": "", "tool_calls": calls_of(calls)}]  # xLAM's
        if isinstance(value, str | int | float):
            return [{"role": "assistant", "content": str(value)}]
    return []


def _transcript(value: Any) -> list[Row]:
    """The messages of a transcript; empty for any other text."""
    if not isinstance(value, str):
        return []
    text = value.lstrip()
    pattern = next((each for each in TRANSCRIPTS if each.match(text)), None)
    if not pattern:
        return []
    _, *parts = pattern.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": SPEAKERS[speaker], "content": said.strip()} for speaker, said in turns]


def _with_system(row: Row, messages: list[Row]) -> list[Row]:
    system = row.get("system") or row.get("system_prompt")
    if not isinstance(system, str) or not system.strip() or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _sides(row: Row) -> tuple[Any, Any, tuple[float | None, float | None]]:
    """The better and the worse response, unprocessed, and their scores."""
    for better, worse in PAIRS:
        if better in row and worse in row:
            return row[better], row[worse], (_score(row, "chosen"), _score(row, "rejected"))
    for first, second, column in RANKED:
        strength = number(row.get(column))
        if first in row and second in row and strength is not None:
            return *_ordered(row[first], row[second], -strength), (None, None)
    if "conversation_a" in row and "conversation_b" in row and "winner" in row:  # Chatbot Arena's
        winner = {"model_a": 1, "model_b": -1}.get(str(row["winner"]), 0)
        return *_ordered(row["conversation_a"], row["conversation_b"], winner), (None, None)
    return _best_and_worst(row)


def _ordered(first: Any, second: Any, lead: float) -> tuple[Any, Any]:
    """The better response, then the worse; `lead` is above 0 if the first is better."""
    if not lead:
        raise BadLineError("no_preference", "neither of its two responses is better")
    return (first, second) if lead > 0 else (second, first)


def _best_and_worst(row: Row) -> tuple[Any, Any, tuple[float, float]]:
    """The best and worst of UltraFeedback's responses, with their scores."""
    completions = decoded(row.get("completions"))
    responses = [
        (score, response["response"])
        for response in (completions if isinstance(completions, list) else ())
        if isinstance(response, dict) and "response" in response
        if (score := number(response.get("overall_score"))) is not None
    ]
    if not responses:
        raise BadLineError("malformed", f"no pair of responses in its columns: {', '.join(row) or 'it has none'}")
    best, worst = max(responses, key=lambda response: response[0]), min(responses, key=lambda response: response[0])
    return *_ordered(best[1], worst[1], best[0] - worst[0]), (best[0], worst[0])


def _score(row: Row, side: str) -> float | None:
    names = (f"{side}_score", f"score_{side}", f"{side}_rating", f"{side}-rating")
    return next((value for name in names if (value := number(row.get(name))) is not None), None)


def _prompt_messages(row: Row) -> list[Row]:
    """The prompt of a pair, used if its responses do not include it."""
    if "prompt" in row:
        return _prompt(row)
    messages = _first(row, CONVERSATIONS)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return messages or _prompt(row)


def _as_conversation(side: Any, asked: list[Row]) -> list[Row]:
    """One response of a pair as a whole conversation."""
    messages = _transcript(side) or messages_of(side)
    if not messages and isinstance(side, str):
        messages = [{"role": "assistant", "content": side}]
    if not messages:
        raise BadLineError("malformed", f"a response is neither a text nor messages: {side!r}"[:120])
    return messages if messages[0]["role"] in ("system", "user") else asked + messages


def _extras(row: Row) -> Row:
    """The other fields of a row that are kept if present."""
    within = row.get("input")
    tools = row.get("tools") or row.get("functions") or (within.get("tools") if isinstance(within, dict) else None)
    tests = decoded(row.get("tests"))
    if not all(isinstance(part, str) for part in (tests if isinstance(tests, list) else [tests or ""])):
        raise BadLineError("malformed_tests", "`tests` is neither a text nor a list of texts")
    extras = {
        "tools": normal_tools(tools_of(tools)),
        "tag": str(row.get("tag") or ""),
        "margin": number(row.get("margin")),
    }
    return {name: value for name, value in {**extras, "tests": tests}.items() if value}
