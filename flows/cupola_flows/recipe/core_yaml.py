"""YAML 1.2's core schema for plain values: `yes`, `on`, `1:30` and `2026-01-02` are strings, `010` is ten.

PyYAML only implements 1.1, where they are true, true, 90, a date and eight.
https://yaml.org/spec/1.2.2/#103-core-schema
"""

import re
from typing import Any

import yaml

PLAIN = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
"""Patterns of plain values by type, in order; everything else is a string."""
TAG = "tag:yaml.org,2002:"


class CoreLoader(yaml.SafeLoader):
    """SafeLoader for the core schema that refuses duplicate keys, of which the first would be lost silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)


class CoreDumper(yaml.SafeDumper):
    """SafeDumper that quotes strings which the core schema would read as another type."""


for _class in (CoreLoader, CoreDumper):
    _class.yaml_implicit_resolvers = {}  # drop those of YAML 1.1
    for _kind, _pattern in PLAIN.items():
        _class.add_implicit_resolver(TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), None)
CoreLoader.add_constructor(f"{TAG}int", CoreLoader.construct_core_int)


def load(text: str) -> Any:
    """Load one YAML document. Raises yaml.YAMLError, or ValueError for an unrepresentable number."""
    return yaml.load(text, CoreLoader)  # a SafeLoader


def plain(text: str) -> Any:
    """The value of a text as a plain scalar, whatever characters it has: a number, boolean, null or the text itself."""
    text = text.strip()
    loader = CoreLoader(text)
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return loader.construct_object(yaml.ScalarNode(tag, text))


def dump(value: Any, *, flow: bool = False) -> str:
    """One line of YAML that `load` reads back as the same value; `flow` for mappings and lists."""
    text: str = yaml.dump(value, Dumper=CoreDumper, default_flow_style=flow, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()
