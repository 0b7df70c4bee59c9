"""Bytes per token by language, compared with other vocabularies."""

import base64
import importlib
import json
import os
from pathlib import Path

import pytest
import tiktoken

from cupola_platform.corpus.config import ExecutorConfig, Files, PrepareConfig, TokenizerConfig
from cupola_platform.corpus.pipeline.preparation import prepare
from cupola_platform.corpus.tokenizer.compression import CL100K_PATTERN, compression
from cupola_platform.errors import ConfigError

QWEN = os.environ.get("CUPOLA_QWEN_VOCABULARY")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compression")
    texts = [
        "The weather is fine today, and we shall go to the park with the dog. " * 9,
        "今天天气很好，我们去公园散步吧。" * 20,
    ]
    lines = "".join(json.dumps({"text": f"{text}{n}"}) + "\n" for n in range(6) for text in texts)
    (folder / "texts.jsonl").write_text(lines)
    config = PrepareConfig(
        sources={"texts": Files(path=str(folder / "texts.jsonl"))},
        quality=None,
        deduplication=None,
        heldout_fraction=0.5,
        tokenizer=TokenizerConfig(vocab_size=640),
        executor=ExecutorConfig(workers=1),
    )
    prepare(config, folder / "tokens")
    return folder / "tokens"


def bytes_only(path: Path) -> Path:
    """A vocabulary of single bytes."""
    path.write_text("".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)))
    return path


def test_bytes_per_token_are_reported_by_language_and_vocabulary(tokens: Path, tmp_path: Path) -> None:
    path = bytes_only(tmp_path / "bytes.tiktoken")
    found = {of.language: of for of in compression(tokens, [str(path), f"cl100k={path}"])}
    assert set(found) == {"en", "zh"}
    for of in found.values():
        assert of.bytes > 500
        assert (of.ratios["bytes"], of.ratios["cl100k"]) == (1.0, 1.0)
        assert of.ratios["ours"] > 2, of


def test_cl100ks_pattern_is_tiktokens(monkeypatch: pytest.MonkeyPatch) -> None:
    public = importlib.import_module("tiktoken_ext.openai_public")
    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: {})
    assert public.cl100k_base()["pat_str"] == CL100K_PATTERN


def test_a_missing_vocabulary_is_one_line(tokens: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"cl100k needs its ranks file, which is never downloaded\. Give it as cl100k=FILE"
    ):
        compression(tokens, ["cl100k"])


@pytest.mark.skipif(not QWEN, reason="needs a folder with qwen.tiktoken in CUPOLA_QWEN_VOCABULARY")
def test_qwens_real_vocabulary_gives_the_same_ids_as_tiktoken() -> None:
    from cupola_platform.corpus.core.qwen_tokenizer import PATTERN
    from cupola_platform.corpus.tokenizer.encoding import DocumentEncoder
    from cupola_platform.corpus.tokenizer.ranks import follows_its_ranks, read_ranks
    from cupola_platform.corpus.tokenizer.vocabulary import open_vocabulary

    path = Path(QWEN or "") / "qwen.tiktoken"
    tokenizer = open_vocabulary(path)
    assert follows_its_ranks(tokenizer) == read_ranks(path)
    theirs = tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=read_ranks(path), special_tokens={})
    texts = [file.read_text() for file in sorted(Path(json.__file__).parent.glob("*.py"))] + [
        "今天天气很好，我们去公园散步吧。" * 3
    ]
    encoder = DocumentEncoder(tokenizer)
    for text in texts:
        assert encoder.encode(text) == theirs.encode_ordinary(text)
    assert tokenizer.token_to_id("<|file_sep|>") == 151_664
