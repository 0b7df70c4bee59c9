"""YAML as version 1.2 reads plain values (its core schema): `yes`, `on`, `1:30` and `2026-01-02` are texts,
`010` is ten.

PyYAML knows 1.1 only, where the same words are true, true, 90, a date and eight.
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
"""What each type's plain values look like, in order; all else is text."""
TAG = "tag:yaml.org,2002:"


class CoreLoader(yaml.SafeLoader):
    """SafeLoader of the core schema that refuses a key given twice: the first one would be lost without a word."""

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
    """SafeDumper that quotes a text where the core schema would read something else."""


for _class in (CoreLoader, CoreDumper):
    _class.yaml_implicit_resolvers = {}  # none of 1.1's
    for _kind, _pattern in PLAIN.items():
        _class.add_implicit_resolver(TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), None)
CoreLoader.add_constructor(f"{TAG}int", CoreLoader.construct_core_int)


def load(text: str) -> Any:
    """The value of one YAML document. Raises yaml.YAMLError, and ValueError for a number that cannot be held."""
    return yaml.load(text, CoreLoader)  # a SafeLoader


def plain(text: str) -> Any:
    """What a text means where it stands plain, whatever signs it holds: a number, true or false, null, or itself."""
    text = text.strip()
    loader = CoreLoader(text)
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return loader.construct_object(yaml.ScalarNode(tag, text))


def dump(value: Any, *, flow: bool = False) -> str:
    """One line of YAML, of which `load` makes the same value; `flow` for mappings and lists."""
    text: str = yaml.dump(value, Dumper=CoreDumper, default_flow_style=flow, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()
