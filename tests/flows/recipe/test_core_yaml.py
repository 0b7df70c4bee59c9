"""Plain values in recipes and overrides follow YAML 1.2's core schema: no text silently becomes a number or a boolean."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupola_flows.recipe import core_yaml
from cupola_flows.recipe.loading import apply_override, load_recipe, parse_recipe, read_yaml, shipped
from cupola_platform.errors import ConfigError

TINY = shipped()["tiny"].read_text()

PLAIN = [
    ("010", 10), ("0123", 123), ("-007", -7), ("0o17", 15), ("0x1F", 31), ("+12", 12), ("1e3", 1000.0), ("1e-5", 1e-5),
    (".5", 0.5), ("5.", 5.0), ("1.10", 1.1), ("-.inf", float("-inf")), ("true", True), ("False", False), ("~", None),
    ("null", None), ("", None),
    ("1:30", "1:30"), ("190:20:30", "190:20:30"), ("yes", "yes"), ("No", "No"), ("on", "on"), ("OFF", "OFF"), ("y",
    "y"), ("2026-01-02", "2026-01-02"), ("1_000", "1_000"), ("0b11", "0b11"), ("<<", "<<"), ("=", "="), ("0o9", "0o9"), ("tRue", "tRue"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), PLAIN)
def test_plain_values_follow_yaml_1_2_in_files_and_overrides(text: str, value: Any) -> None:
    for found in (core_yaml.load(f"key: {text}")["key"], apply_override({}, f"description={text}")["description"]):
        assert (found, type(found)) == (value, type(value))


def test_a_number_with_a_leading_zero_is_decimal_and_one_with_a_colon_is_refused() -> None:
    assert parse_recipe(TINY.replace("seed: 7", "seed: 010")).seed == 10
    with pytest.raises(ConfigError, match="seed: '1:30': input should be a valid integer"):
        parse_recipe(TINY.replace("seed: 7", "seed: 1:30"))


def test_a_source_may_be_called_no() -> None:
    """Norway's country code; a key `on` works as well."""
    assert read_yaml("{no: 1, on: 2, y: 3}", "recipe") == {"no": 1, "on": 2, "y": 3}


@pytest.mark.parametrize(
    "text",
    ["a: b", "see #12", "- x", "* all *", "!important", "&c", "% done", "a, b", "50%", "x [1]", "@home", "`x`", "?"],
)
def test_the_text_of_an_override_is_taken_literally(text: str) -> None:
    assert load_recipe("tiny", [f"description={text}"]).description == text


def test_an_override_that_starts_like_yaml_is_yaml_or_refused_with_the_fix() -> None:
    assert apply_override({}, "description='010'")["description"] == "010"
    assert apply_override({}, 'description="a: \\n b"')["description"] == "a: \n b"
    assert apply_override({}, "stages=[1, {no: 010}]")["stages"] == [1, {"no": 10}]
    with pytest.raises(ConfigError) as caught:
        load_recipe("tiny", ["description=[draft] of mine"])
    assert str(caught.value).endswith("Quote a text that starts with [")
    with pytest.raises(ConfigError, match=r"^--set description: unacceptable character #x0007: special"):
        load_recipe("tiny", ["description=\x07"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from([text for text, _ in PLAIN])
    | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([text for text, _ in PLAIN]), inner),
    max_leaves=6,
)  # fmt: skip


@settings(deadline=None)
@given(VALUES)
def test_values_from_the_consoles_table_round_trip(value: Any) -> None:
    text = core_yaml.dump(value, flow=isinstance(value, dict | list))
    assert "\n" not in text
    for found in (core_yaml.load(f"key: {text}")["key"], apply_override({}, f"description={text}")["description"]):
        assert (found, type(found)) == (value, type(value))
