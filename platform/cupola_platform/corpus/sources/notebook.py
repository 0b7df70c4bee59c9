"""Jupyter notebooks as text."""

import json
from typing import Any


def notebook_to_text(source: str) -> str | None:
    """A notebook's prose, and its code in fences, in order and without outputs. None if it is not a notebook."""
    try:
        notebook = json.loads(source)
    except (ValueError, RecursionError):
        return None
    cells = _cells(notebook)
    if cells is None:
        return None
    language = _language(notebook)
    parts = []
    for cell in cells:
        kind, text = cell.get("cell_type"), _text(cell.get("source", cell.get("input", ""))).strip("\n")
        if not text.strip():
            continue
        parts.append(f"```{language}\n{text}\n```" if kind == "code" else text)
    return "\n\n".join(parts)


def _cells(notebook: Any) -> list[dict[str, Any]] | None:
    """The cells of format 4, or of format 3's worksheets."""
    if not isinstance(notebook, dict):
        return None
    sheets = notebook.get("worksheets") if isinstance(notebook.get("worksheets"), list) else [notebook]
    kept: list[dict[str, Any]] = []
    for sheet in sheets or []:
        cells = sheet.get("cells") if isinstance(sheet, dict) else None
        if not isinstance(cells, list):
            return None
        kept += [cell for cell in cells if isinstance(cell, dict)]
    return kept


def _language(notebook: dict[str, Any]) -> str:
    about = notebook.get("metadata")
    info = about.get("language_info") or about.get("kernelspec") if isinstance(about, dict) else None
    name = info.get("name", info.get("language")) if isinstance(info, dict) else None
    return name if isinstance(name, str) and name.isalnum() else "python"


def _text(source: Any) -> str:
    """Text given as a string or as a list of lines."""
    return "".join(map(str, source)) if isinstance(source, list) else str(source)
