"""Tokenizer folders, and their chat template's date: `template_date` in tokenizer_config.json (see `dates`)."""

import json
import shutil
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

CONFIG = "tokenizer_config.json"
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>")
"""Tokens that end a turn or a document in the supported families."""


def load_tokenizer(folder: Path, day: date | None = None) -> Any:
    """Load a tokenizer that renders with this date, or else with the one saved in the folder."""
    return AutoTokenizer.from_pretrained(folder, **({"template_date": day.isoformat()} if day else {}))


def tokenizer_of(folders: Iterable[Path]) -> Path | None:
    """The first tokenizer with a saved date among checkpoints with the same tokenizer, else the first; None if there is
    none."""
    tokenizers = [folder / "tokenizer" for folder in folders if (folder / "tokenizer").is_dir()]
    return next(
        (folder for folder in tokenizers if "template_date" in _config(folder)), tokenizers[0] if tokenizers else None
    )


def keep_date(folder: Path, day: date, to: Path) -> Path:
    """Copy a tokenizer folder to `to`, with `day` as its template date. Returns `to`."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    config = {**_config(to), "template_date": day.isoformat()}
    (to / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    return to


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def stop_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens that stop generation: end of turn and end of document, by their names in each family."""
    vocabulary = tokenizer.get_vocab()
    stops = [vocabulary[token] for token in STOP_TOKENS if token in vocabulary]
    end = tokenizer.eos_token_id
    return stops if end is None or end in stops else [*stops, end]
