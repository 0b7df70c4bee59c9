"""Module names: none of those that say nothing, and no name with two meanings."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("platform", "trainer", "flows", "dashboards")
SAY_NOTHING = {
    "beside", "deciding", "forwarding", "front", "gathering", "helpers", "judging", "keeping", "learning", "looking",
    "making", "misc", "posttrain", "referencing", "teaching", "util", "utils", "wordings", "words", "writing",
}  # fmt: skip
ONE_MEANING = ("making", "job", "writing", "mixture", "anchor", "queries", "rollout", "stage_code")
"""Words that once named several things: at most one module may have each of these names."""


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [str(path.relative_to(ROOT)) for path in modules() if path.stem in SAY_NOTHING] == []


def test_a_word_that_named_several_things_names_only_one() -> None:
    counts = {word: [path for path in modules() if path.stem == word] for word in ONE_MEANING}
    assert {word: paths for word, paths in counts.items() if len(paths) > 1} == {}
