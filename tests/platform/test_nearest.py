"""Suggestions for misspelt names."""

import pytest

from cupola_platform.nearest import did_you_mean


@pytest.mark.parametrize(
    ("given", "known", "hint"),
    [
        ("qwen3", ["qwen2", "llama"], " Did you mean 'qwen2'?"),
        ("x", ["b", "a"], " Known: a, b."),
        (
            "x",
            [f"n{number:02}" for number in range(32)],
            f" Known: {', '.join(f'n{i:02}' for i in range(30))} and 2 more.",
        ),
        ("x", [], ""),
    ],
)
def test_a_close_name_is_suggested_and_otherwise_the_known_ones_are_listed(
    given: str, known: list[str], hint: str
) -> None:
    assert did_you_mean(given, known) == hint
