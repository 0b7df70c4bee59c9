"""The Annotate page in a real browser: read two responses, press a key, and the choice is in the registry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from cupola_platform.annotation import sides
from cupola_platform.workspace import Workspace


def test_keys_choose_responses_and_the_choices_become_an_artifact(
    tab: Page, tmp_path: Path, serve_with: Callable[..., Any], settled: Callable[[], None]
) -> None:
    workspace = Workspace.open(tmp_path / "home")
    folder = tmp_path / "given"
    folder.mkdir()
    pairs: list[dict[str, Any]] = [
        {
            "id": f"pair-{n}",
            "messages": [{"role": "user", "content": f"What is {n} + 1?"}],
            "chosen": f"It is {n + 1}, <b>surely</b>.",
            "rejected": f"Nobody knows {n}.",
            "task": None,
        }
        for n in range(3)
    ]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    pairs[1] |= {
        "tools": [{"type": "function", "function": {"name": "add"}}],
        "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}],
    }
    for split in ("train", "heldout"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    given = workspace.publish(folder, kind="preferences", stage="preferences")
    with serve_with(tmp_path / "home", tmp_path, {}) as address:
        tab.goto(f"{address}/annotate")
        name = tab.get_by_label("Your name")
        name.fill("Ana")
        name.press("Enter")
        expect(tab.get_by_text("What is 0 + 1?")).to_be_visible()
        expect(tab.get_by_text("It is 1, <b>surely</b>.")).to_be_visible()
        for n, key in enumerate(("1", "2", "0")):
            expect(tab.get_by_text(f"What is {n} + 1?")).to_be_visible()
            expect(tab.get_by_text(f"{n} of 3 pairs compared")).to_be_visible()
            for text in ('{"name": "add"}', 'add({"a": 1})'):
                expect(tab.get_by_text(text, exact=True)).to_have_count(int(n == 1))
            tab.get_by_role("heading", name="Annotate", exact=True).click()  # leave the text field
            settled()
            tab.keyboard.press(key)
        expect(tab.get_by_text("All pairs are compared.")).to_be_visible()
        tab.get_by_role("button", name="Export as preferences").click()
        expect(tab.get_by_text("Exported as artifact")).to_be_visible()
    said = {word.pair: word.choice for word in workspace.registry.annotations(given.digest, "Ana")}
    assert said == {"pair-0": sides(pairs[0])[0], "pair-1": sides(pairs[1])[1], "pair-2": "tie"}
    (made,) = [row for row in workspace.registry.artifacts("preferences") if row.stage == "annotate"]
    assert made.parents == (given.digest,)
