"""Shared fixtures of the trainer's tests: a small token corpus, and launching scripts on several real ranks."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cupola_platform.corpus.core.qwen_tokenizer import save_tokenizer
from cupola_platform.corpus.tokenizer.vocabulary import train_tokenizer

EOD = 256
VOCAB = 320
"""Bytes, an end-of-document token, and padding to a multiple of 64."""


@pytest.fixture(scope="session")
def tokens_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a `tokens` artifact made of bytes of Python's standard library: sources "code" and "tests"."""
    folder = tmp_path_factory.mktemp("tokens")
    library = Path(os.__file__).parent
    texts = {
        "code": [
            (library / "json" / name).read_bytes() for name in ("decoder.py", "encoder.py", "scanner.py", "tool.py")
        ],
        "email": [(library / "email" / name).read_bytes() for name in ("parser.py", "utils.py", "header.py")],
    }
    index: dict[str, Any] = {"vocab_size": VOCAB, "end_of_document": EOD, "sources": {}}
    for source, documents in texts.items():
        index["sources"][source] = {
            "train": write_shard(folder / "shards" / f"train-{source}", documents[:-1]),
            "heldout": write_shard(folder / "shards" / f"heldout-{source}", documents[-1:]),
        }
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of `saved_models.py`: small checkpoints of every family, a tokenizer, tokens, conversations."""
    folder = tmp_path_factory.mktemp("saved_models") / "saved"
    subprocess.run([sys.executable, Path(__file__).parent / "material" / "saved_models.py", folder], check=True)
    return folder


def write_shard(prefix: Path, documents: list[bytes]) -> dict[str, int]:
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix.parent.mkdir(exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for document in documents:
        ids = torch.tensor([*document, EOD])
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")
    size = sum(len(document) for document in documents)
    return {"documents": len(documents), "tokens": size + len(documents), "bytes": size}


@pytest.fixture(scope="session")
def torchrun(launcher: Callable[[int], Any]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script, or a module with "-m", on several ranks; fails with their output."""

    def launch(
        ranks: int, *arguments: object, check: bool = True, timeout: float = 560
    ) -> subprocess.CompletedProcess[str]:
        command, variables = launcher(ranks)
        done = subprocess.run(
            [*command, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, env=variables,
            check=False
        )  # fmt: skip
        if check and done.returncode:
            pytest.fail(f"torchrun ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        return done

    return launch


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[list[str], dict[str, str]]]:
    """The command and environment that start a number of ranks, for tests that manage the process themselves."""
    folder = tmp_path_factory.mktemp("rendezvous")
    return lambda ranks: started(ranks, folder)


def started(ranks: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    from cupola_platform.launch.rendezvous import torchrun

    command, variables = torchrun(ranks, Path(tempfile.mkdtemp(dir=folder)))
    return command, {**environment(), **variables}


def environment() -> dict[str, str]:
    """The environment without variables left by another test's process group."""
    left = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in left}


@pytest.fixture(scope="session")
def chat_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 1,024 rows with the platform's chat template, trained on some of Python's modules."""
    library = Path(os.__file__).parent
    texts = [(library / f"{name}.py").read_text(encoding="utf-8") for name in ("argparse", "textwrap", "random", "csv")]
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(texts, 1024).to_str(), folder)
    return folder


@pytest.fixture(scope="session")
def chat_tokenizer(chat_tokenizer_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(chat_tokenizer_folder)
