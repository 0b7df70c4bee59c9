"""Near-duplicate removal against datasketch and datatrove, tokenization against tiktoken and tokenizers (same input,
same run, taking turns), and the whole preparation by phase.

    python benchmarks/real_text.py FOLDER       # once: real text in many languages
    python benchmarks/corpus.py [--text FOLDER] [--documents 4000] [--megabytes 6] [--rounds 3] [--only near|tokens]
    python benchmarks/corpus.py [--text FOLDER] --pipeline [--megabytes 50,500] [--workers 2,1]

The best round of each counts. Prints the ratios.
"""

import argparse
import os
import sysconfig
import tempfile
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import tiktoken
from numpy.typing import NDArray
from tokenizers import Tokenizer

from contest import interleaved
from cupola_platform.corpus.config import TokenizerConfig
from cupola_platform.corpus.core.qwen_tokenizer import END_OF_TEXT, PATTERN
from cupola_platform.corpus.tokenizer.encoding import DocumentEncoder
from cupola_platform.corpus.tokenizer.ranks import byte_letters
from cupola_platform.corpus.tokenizer.vocabulary import make_tokenizer
from near_duplicates import near_duplicate_contest
from preparation import pipeline
from real_text import real_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--text", type=Path, help="the folder made by real_text.py; by default this machine's own text, without Chinese"
    )
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--megabytes", default="6", help="with --pipeline a list, such as 50,500")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("near", "tokens"))
    parser.add_argument("--pipeline", action="store_true", help="run the whole preparation instead")
    parser.add_argument("--workers", default="2,1")
    arguments = parser.parse_args()
    sizes = [float(size) for size in arguments.megabytes.split(",")]
    if arguments.pipeline:
        pipeline(arguments.text, sizes, [int(count) for count in arguments.workers.split(",")])
        return
    if arguments.only != "tokens":
        near_duplicate_contest(
            real_texts(arguments.text, 4000 * arguments.documents), arguments.documents, arguments.rounds
        )
    if arguments.only != "near":
        tokenization(texts_of(arguments.text, int(sizes[0] * 1e6)), arguments.rounds)


def texts_of(folder: Path | None, size: int) -> list[str]:
    """Real text in many languages if available, else the standard library."""
    return real_texts(folder, size) if folder else library(size)


def tokenization(texts: list[str], rounds: int) -> None:
    """Megabytes of text per second, encoded to a shard's arrays. All should give the same ids."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(TokenizerConfig(vocab_size=4096), texts[::3], Path(folder))
        tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    letters = {letter: byte for byte, letter in byte_letters().items()}
    ranks = {
        bytes(letters[letter] for letter in token): rank
        for token, rank in tokenizer.get_vocab(with_added_tokens=False).items()
    }
    encoding = tiktoken.Encoding("cupola", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    end = tokenizer.token_to_id(END_OF_TEXT)
    fresh = [DocumentEncoder(tokenizer) for _ in range(rounds)]  # its words are learned anew in every round
    ids: dict[str, list[NDArray[np.integer]]] = {}

    def ours() -> None:
        tokens, counts = fresh.pop().documents(texts)
        ids["cupola"] = np.split(tokens.astype(np.uint16), np.cumsum(counts)[:-1])

    def openai() -> None:
        ids["tiktoken"] = [np.array([*encoding.encode_ordinary(text), end], np.uint16) for text in texts]

    def hugging_face() -> None:
        encoded = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
        ids["tokenizers"] = [np.array([*of, end], np.uint16) for of in encoded]

    seconds = interleaved({"cupola": ours, "tiktoken": openai, "tokenizers": hugging_face}, rounds)
    for name, spent in seconds.items():
        speeds = f"{size / spent.processor:9.2f} MB per CPU-second {size / spent.wall:9.2f} MB/s"
        print(f"tokenization     {name:11} {speeds}   {sum(map(len, ids[name])):,} tokens")
    for peer in ("tiktoken", "tokenizers"):
        same = "equal" if all(map(np.array_equal, ids[peer], ids["cupola"])) else "not equal"
        print(
            f"tokenization     ratio to {peer} {seconds[peer].processor / seconds['cupola'].processor:.2f}, ids {same}"
        )


def library(size: int) -> list[str]:
    """About `size` bytes of the standard library."""
    texts: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if size <= 0:
            break
        if not {"site-packages", "test", "tests"} & set(path.parts):
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
            size -= path.stat().st_size
    return texts


if __name__ == "__main__":
    main()
