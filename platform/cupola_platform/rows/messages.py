"""Conversations in other formats as messages of one form: {"role", "content", "tool_calls", ...}."""

import json
from collections.abc import Mapping
from typing import Any

from cupola_platform.json_lines import BadLineError, Row
from cupola_platform.rows.values import decoded

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "bot": "assistant", "ai": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "ipython": "tool", "environment": "tool",
    "tool_response": "tool", "function_response": "tool",
}  # fmt: skip
"""Other names of the four roles: ShareGPT, OpenAI, OpenAssistant, Gemini, Llama."""

CALLERS = ("function_call", "tool_call")
"""ShareGPT's roles of turns that are tool calls; LLaMA-Factory pairs them with `observation`."""

TEXT_PARTS = ("text", "input_text", "output_text")

KEPT = ("tool_call_id", "name", "reasoning_content")
"""Other fields of a message that a chat template may use."""


def messages_of(value: Any) -> list[Row] | None:
    """The messages of a column in any known shape, without empty system messages; None if it holds no conversation.

    Known shapes: a list of messages, of texts (user and assistant alternating) or of ShareGPT turns; one message; an
    object with "messages"; lists by key; and any of these as a JSON string. Unknown roles are left unchanged.

    Args:
        value: as returned by `values.plain`.

    Raises:
        BadLineError: a part of a message is not text ("not_text"), or JSON in it is nested too deep.
    """
    given, value = value, decoded(value)
    if isinstance(value, Mapping):
        value = value["messages"] if isinstance(value.get("messages"), list) else _by_place(value)
    if not isinstance(value, list) or not value:
        return None
    if (
        value is given and len(value) > 1 and all(isinstance(turn, str) for turn in value)
    ):  # a JSON list of strings is text itself
        return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(value)]
    if not all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value):
        return None
    messages: list[Row] = []
    for turn in value:
        _add(messages, turn)
    return messages


def _by_place(value: Mapping[str, Any]) -> list[Any]:
    """A single message as a list; lists by key, as `datasets` returns sequences of objects, as a list of objects."""
    columns = {key: held for key, held in value.items() if isinstance(held, list)}
    if not columns or not isinstance(value.get("role", value.get("from")), list):
        return [value]
    return [dict(zip(columns, turn, strict=True)) for turn in zip(*columns.values(), strict=False)]


def _add(messages: list[Row], turn: Row) -> None:
    """Append a turn in the normal form."""
    name = str(turn.get("role", turn.get("from")))
    role = name.strip().lower()
    content = next((turn[key] for key in ("content", "value", "parts", "text") if key in turn), None)
    if role in CALLERS:
        calls = calls_of(content)
        if messages and messages[-1]["role"] == "assistant":
            messages[-1]["tool_calls"] = messages[-1].get("tool_calls", []) + calls
        else:
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        return
    role = ROLES.get(role, name)
    content = _result(content) if role == "tool" else _text(content)
    if role == "system" and (content is None or not str(content).strip()):
        return
    made = {"role": role, "content": content} | {key: turn[key] for key in KEPT if key in turn}
    calls = calls_of(turn.get("tool_calls") or turn.get("function_call") or [])
    if role == "assistant" and not calls and isinstance(content, str):
        content, calls = _calls_in(content)
    if calls:
        made |= {"content": content or "", "tool_calls": calls}
    messages.append(made)


def _calls_in(text: str) -> tuple[str, list[Any]]:
    """A text without the tool calls embedded in it, in the format of Hermes and Qwen2.5's template, and those calls."""
    before, *pieces = text.split("<tool_call>")
    parts = [piece.partition("</tool_call>") for piece in pieces]
    calls = [decoded(call.strip()) for call, _, _ in parts]
    if not calls or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        return text, []
    return "".join([before, *(after for _, _, after in parts)]).strip(), calls_of(calls)


def _text(content: Any) -> Any:
    """A message's text; parts are joined by line feeds."""
    if not isinstance(content, list):
        return content
    return "\n".join(map(_part, content))


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if isinstance(text, str) and (not isinstance(part, Mapping) or part.get("type", "text") in TEXT_PARTS):
        return text
    kind = part.get("type", "unknown") if isinstance(part, Mapping) else type(part).__name__
    raise BadLineError("not_text", f"a message has a part of type {kind}")


def _result(content: Any) -> str:
    """A tool's result, which may be any value or missing."""
    if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
        return str(_text(content))
    if content is None or isinstance(content, str):
        inner = (content or "").strip().removeprefix("<tool_response>").removesuffix("</tool_response>")
        return inner.strip() if content and "<tool_response>" in content else content or ""
    return json.dumps(content, ensure_ascii=False)


def calls_of(value: Any) -> list[Any]:
    """Tool calls in OpenAI's form, from one call or a list, also as a JSON string. Anything else is left unchanged."""
    value = decoded(value)
    return [_call(call) for call in (value if isinstance(value, list) else [value])]


def _call(call: Any) -> Any:
    call = decoded(call)
    function = decoded(call.get("function", call)) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments", function.get("parameters"))
    about = {"name": function.get("name"), "arguments": {} if arguments in (None, "") else arguments}
    return {**({"id": call["id"]} if "id" in call else {}), "type": "function", "function": about}


def tools_of(value: Any) -> list[Row]:
    """The tools that an assistant may call, as a list of objects.

    Raises:
        BadLineError: the value is not a list of objects ("malformed_tools").
    """
    parsed = decoded(value) or []
    given = [parsed] if isinstance(parsed, dict) else parsed
    tools = [tool for each in given if isinstance(tool := decoded(each), dict)] if isinstance(given, list) else None
    if tools is None or len(tools) < len(given):
        raise BadLineError("malformed_tools", f"`tools` is not a JSON list of objects: {value!r}"[:120])
    return tools
