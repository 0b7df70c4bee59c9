"""What the tests of post-training share."""

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cupola_platform.corpus.core.qwen_tokenizer import save_tokenizer
from cupola_platform.corpus.tokenizer.vocabulary import train_tokenizer


@pytest.fixture(scope="session")
def chat_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 1,024 rows with the platform's chat template, trained on some of Python's own modules."""
    library = Path(os.__file__).parent
    texts = [(library / f"{name}.py").read_text(encoding="utf-8") for name in ("argparse", "textwrap", "random", "csv")]
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(texts, 1024).to_str(), folder)
    return folder


@pytest.fixture(scope="session")
def chat_tokenizer(chat_tokenizer_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(chat_tokenizer_folder)
