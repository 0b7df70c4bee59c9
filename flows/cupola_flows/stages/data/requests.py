"""Prompts for synthetic data, and parsing of the responses."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from cupola_flows.stages.data.synthesis import SynthesisSettings
from cupola_platform.conversation import words
from cupola_platform.endpoint import Completion

Row = dict[str, Any]
Say = Callable[[Sequence[Row], str], list[Completion]]
"""Function of requests, {"messages", "tools"}, and the name of the step. Returns the responses."""

REWORD = (
    "Write the following request in other words. Keep its meaning and every number and name in it. Give the new "
    "request only.\n\n{question}"
)
ASK = (
    "Read the text. Write one question that it answers and that can be understood without it, and the answer, in the "
    "text's language. Keep to this form:\nQuestion: ...\nAnswer: ...\n\nText:\n{text}"
)
CRITICISE = (
    "Principle: {principle}\n\nQuestion:\n{question}\n\nAnswer:\n{answer}\n\nSay in a few sentences where the answer "
    "goes against the principle."
)
REVISE = (
    "Principle: {principle}\n\nQuestion:\n{question}\n\nAnswer:\n{answer}\n\nCritique:\n{critique}\n\nWrite the answer "
    "again, so that it follows the principle. Give the new answer only."
)
JUDGE = (
    "Mark the answer to the question from 0 (useless or wrong) to 10 (right, complete, clear). Give the mark only.\n\n"
    "Question:\n{question}\n\nAnswer:\n{answer}"
)
_PAIR = re.compile(r"Question:\s*(.+?)\s*\n\s*Answer:\s*(.+)", re.DOTALL)


def make(stage: SynthesisSettings, rows: Sequence[Row], numbers: Sequence[int], say: Say) -> list[Row]:
    """For each row: `messages` (None without a usable response), `prompt`, `finished`, and how it was made."""
    if stage.make == "revisions":
        return _revised(stage, rows, numbers, say)
    prompts = [_prompt_for(stage, row) for row in rows]
    return [
        {
            "messages": _messages(stage, row, response),
            "prompt": question["messages"],
            "finished": response.finished,
        }
        for row, question, response in zip(rows, prompts, say(prompts, "text"), strict=True)
    ]


def _prompt_for(stage: SynthesisSettings, row: Row) -> Row:
    """The request for a row. Only responses to the row's own prompt may call its tools."""
    if stage.make == "prompts":
        return {"messages": [_user(ASK.format(text=row["text"]))]}
    messages: list[Row] = row["messages"][:-1]
    if stage.make == "responses":
        return {"messages": messages, "tools": row.get("tools")}
    return {"messages": [_user(REWORD.format(question=messages[-1]["content"]))]}


def _messages(stage: SynthesisSettings, row: Row, response: Completion) -> list[Row] | None:
    """The conversation with the model's response; None if the response is unusable."""
    text = response.text.strip()
    if stage.make == "responses" and (text or response.tool_calls):
        calls = {"tool_calls": list(response.tool_calls)} if response.tool_calls else {}
        return [*row["messages"][:-1], {"role": "assistant", "content": text, **calls}]
    if not text or stage.make == "responses":
        return None
    if stage.make == "variants":
        return [*row["messages"][:-2], _user(text), row["messages"][-1]]
    match = _PAIR.search(text)
    return [_user(match[1]), {"role": "assistant", "content": match[2].strip()}] if match else None


def _revised(stage: SynthesisSettings, rows: Sequence[Row], numbers: Sequence[int], say: Say) -> list[Row]:
    drafts = [
        {
            "principle": stage.constitution[number % len(stage.constitution)],
            "question": row["messages"][-2]["content"],
            "answer": row["messages"][-1]["content"],
        }
        for row, number in zip(rows, numbers, strict=True)
    ]
    critiques = say([{"messages": [_user(CRITICISE.format(**of))]} for of in drafts], "critique")
    for of, critique in zip(drafts, critiques, strict=True):
        of["critique"] = critique.text.strip()
    prompts = [{"messages": [_user(REVISE.format(**of))]} for of in drafts]
    return [
        {
            "messages": [*row["messages"][:-1], {"role": "assistant", "content": response.text.strip()}]
            if response.text.strip() and critique.text.strip()
            else None,
            "prompt": question["messages"],
            "finished": response.finished and critique.finished,
            "principle": of["principle"],
            "critique": of["critique"],
            "before": of["answer"],
        }
        for row, of, question, critique, response in zip(
            rows, drafts, prompts, critiques, say(prompts, "revision"), strict=True
        )
    ]


def judging(messages: Sequence[Row]) -> list[Row]:
    """The prompt for a judge."""
    return [_user(JUDGE.format(question=words(messages[-2]), answer=words(messages[-1])))]


def mark_of(text: str) -> float:
    """A judge's mark divided by 10; 0 without a mark from 0 to 10."""
    match = re.search(r"\d+(?:\.\d+)?", text)
    value = float(match[0]) / 10 if match else 0.0
    return value if value <= 1 else 0.0


def _user(text: str) -> Row:
    return {"role": "user", "content": text}
