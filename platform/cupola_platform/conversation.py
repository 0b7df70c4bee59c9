"""Conversations: messages, tool calls and tools in one normal form, and the checks of them.

The form is that of transformers' chat templates:

    {"role": "assistant", "content": "",
     "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
    {"role": "tool", "content": "3"}

`problem` and everything that renders a conversation normalize it first, so rows can be passed as they were read.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

CONTROL_TOKENS = frozenset({"<|im_start|>", "<|im_end|>", "<|endoftext|>"})
"""ChatML's, for text for which no tokenizer is chosen yet."""
ROLES = frozenset({"system", "user", "assistant", "tool"})


def normal(messages: Any) -> Any:
    """Messages in the normal form; anything that is not a message is left unchanged for `problem` to report.

    Null fields are removed: Arrow gives every row the fields of all rows, so nulls in a call's arguments are filler too
    and must not be trained on. If the arguments are a JSON string, its nulls were written on purpose, so the string is
    kept as it is. Missing, empty or null arguments become {}. OpenAI's older `function_call` and role `function` are
    also accepted.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return messages
    try:
        return [_message(message) if isinstance(message, Mapping) else message for message in messages]
    except RecursionError:  # arguments nested hundreds deep
        return []


def normal_tools(tools: Any) -> Any:
    """Tools as a list of {"type": "function", "function": {"name", ...}}; None, null and "" become []. JSON strings are
    parsed.

    Anything that is not a tool is left unchanged for `problem` to report.
    """
    try:
        tools = _parsed(tools)
        if isinstance(tools, Mapping):
            tools = [tools]
        return [_tool(_parsed(tool)) for tool in tools] if isinstance(tools, list | tuple) else tools or []
    except RecursionError:
        return None


def for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates expect them: in the normal form, with every call's arguments as an object."""
    normalized: list[dict[str, Any]] = normal(messages)
    return [
        {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in normalized
    ]


def problem(messages: Any, control_tokens: Collection[str] = CONTROL_TOKENS, tools: Any = None) -> str | None:
    """Why a conversation cannot be trained on, as a key to count drops by; None if it can.

    "malformed", "unknown_role", "empty_message", "control_token" (in a text, it would end the turn),
    "malformed_tool_call", "malformed_tools", "stray_tool_result" (no call precedes it), "no_assistant_turn",
    "no_prompt".
    """
    messages = normal(messages)
    if not isinstance(messages, list) or not messages:
        return "malformed"
    called = False
    for message in messages:
        if reason := _problem_of(message):
            return reason
        if message["role"] == "tool" and not called:
            return "stray_tool_result"
        called = "tool_calls" in message if message["role"] != "tool" else called
    if not _are_tools(tools := normal_tools(tools)):
        return "malformed_tools"
    if holds_control_token([for_template(messages), tools], control_tokens):
        return "control_token"
    if messages[-1]["role"] != "assistant":
        return "no_assistant_turn"
    return None if messages[0]["role"] != "assistant" else "no_prompt"


def holds_control_token(value: Any, control_tokens: Collection[str]) -> bool:
    """Whether any string in `value`, keys included, contains a control token."""
    return any(token in text for text in _texts(value) for token in control_tokens)


def as_message(response: Any) -> Message:
    """A response of a preference pair, a string or a list of one message, as an assistant message."""
    if isinstance(response, list | tuple) and len(response) == 1 and isinstance(response[0], Mapping):
        return {"role": "assistant", **response[0]}
    return {"role": "assistant", "content": response}


def as_response(message: Message) -> Any:
    """The reverse of `as_message`: a string, or a list of the message if it is more than text, such as a tool call."""
    return message["content"] if set(message) == {"role", "content"} else [message]


def words(message: Message) -> str:
    """A message for people to read: its text, and one line per call."""
    [message] = for_template([message])
    calls = (call["function"] for call in message.get("tool_calls", ()))
    lines = [f"{call['name']}({json.dumps(call['arguments'], ensure_ascii=False)})" for call in calls]
    return "\n".join(filter(None, [str(message.get("content") or ""), *lines]))


def _message(message: Message) -> Message:
    kept = {key: value for key, value in message.items() if value is not None}
    older = kept.pop("function_call", None)
    calls = kept.pop("tool_calls", None) or ([older] if older else None)
    if kept.get("role") == "function":
        kept["role"] = "tool"
    if calls or kept.get("role") == "tool":
        content = kept.setdefault("content", "")
        if isinstance(content, Mapping):  # a tool's result given as an object
            kept["content"] = json.dumps(_without_nulls(content), ensure_ascii=False)
    if calls:
        kept["tool_calls"] = [_call(call) for call in calls] if isinstance(calls, list | tuple) else calls
    return kept


def _call(call: Any) -> Any:
    function = call.get("function") or call if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}  # Mistral's template requires one
    arguments = _arguments(function.get("arguments"))
    return {**identity, "type": "function", "function": {"name": function.get("name"), "arguments": arguments}}


def _arguments(value: Any) -> Any:
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    if not isinstance(value, str):
        return _without_nulls(value)
    parsed = _parsed(value)
    if parsed is None:
        return {}
    return parsed if isinstance(parsed, Mapping) and _without_nulls(parsed) == parsed else value


def _with_object(call: Any) -> Any:
    return {**call, "function": {**call["function"], "arguments": _parsed(call["function"]["arguments"])}}


def _tool(tool: Any) -> Any:
    tool = _without_nulls(tool)
    if isinstance(tool, dict) and "function" not in tool and "name" in tool:
        return {
            "type": "function",
            "function": {key: of for key, of in tool.items() if (key, of) != ("type", "function")},
        }
    return tool


def _parsed(value: Any) -> Any:
    """A JSON string parsed; any other value unchanged. The empty string and "null" give None."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError:
        return value


def _without_nulls(value: Any) -> Any:
    """`value` without null fields, at any depth. Nulls in lists stay, since they keep the positions."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(of) for key, of in value.items() if of is not None}
    return [_without_nulls(of) for of in value] if isinstance(value, list | tuple) else value


def _problem_of(message: Any) -> str | None:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
        return "malformed"
    role, calls = message.get("role"), message.get("tool_calls", [])
    if not isinstance(role, str) or role not in ROLES:
        return "unknown_role"
    if not isinstance(calls, list) or not all(map(_is_call, calls)) or (calls and role != "assistant"):
        return "malformed_tool_call"
    empty = not message["content"].strip() and not calls and role != "tool"
    return "empty_message" if empty else None


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        return False
    return isinstance(_parsed(function.get("arguments")), Mapping)


def _are_tools(tools: Any) -> bool:
    if not isinstance(tools, list):
        return False
    functions = [tool.get("function") if isinstance(tool, Mapping) else None for tool in tools]
    return all(isinstance(function, Mapping) and isinstance(function.get("name"), str) for function in functions)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, of in value.items():
            yield str(key)
            yield from _texts(of)
    elif isinstance(value, list | tuple):
        for of in value:
            yield from _texts(of)
