"""The result: one JSON file, and the table for BENCHMARKS.md."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from gpu_check.rows import Figures, Row

LIBRARIES = ("torch", "triton", "megatron-core", "transformer-engine", "flash-attn", "transformers", "numpy")


def write(folder: Path, rows: Sequence[Row], seconds: Mapping[str, float], device: str, small: bool) -> Path:
    """Write `gpu-check.json` and `gpu-check.md` into a folder. Returns the JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "device": device,
        "form": "small" if small else "full",
        "python": platform.python_version(),
        "versions": versions(),
        "seconds": dict(seconds),
        "rows": [asdict(row) for row in rows],
    }
    (folder / "gpu-check.md").write_text(table(rows, seconds, device, small))
    path = folder / "gpu-check.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def versions() -> dict[str, str]:
    """Installed versions of the libraries whose numbers or speed are checked."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def table(rows: Sequence[Row], seconds: Mapping[str, float], device: str, small: bool) -> str:
    """A Markdown table with a row for each Row."""
    installed = ", ".join(f"{name} {version}" for name, version in versions().items() if version != "not installed")
    size = "the small form: tiny models, whose speed says nothing" if small else "the full form"
    total = sum(seconds.values())
    head = [
        f"Device: {device}; Python {'.'.join(map(str, sys.version_info[:3]))}; {installed}; {size}; {total:.0f} s.",
        "",
        "| section | case | status | figures | rule, or reason |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(_line, rows)]) + "\n"


def _line(row: Row) -> str:
    why = "; ".join(filter(None, (row.rule, row.reason)))
    cells = (row.section, row.name, row.status, figures(row.figures), why)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def figures(found: Figures) -> str:
    """Figures in words, to four digits: `tokens/s 12,340; MFU 0.4512`."""
    return "; ".join(f"{name} {_number(value)}" for name, value in found.items())


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
