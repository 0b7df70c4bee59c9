"""The settings of a preparation. Light to import, because recipes embed them."""

from cupola_platform.corpus.config.classifiers import ClassifierConfig, QualityModelConfig, ToxicityConfig
from cupola_platform.corpus.config.prepare import ExecutorConfig, PrepareConfig, TokenizerConfig
from cupola_platform.corpus.config.quality import QualityConfig
from cupola_platform.corpus.config.sources import (
    Code,
    Files,
    HuggingFace,
    PythonEnvironment,
    S3Prefix,
    Source,
)
from cupola_platform.corpus.config.steps import (
    DecontaminationConfig,
    DeduplicationConfig,
    LanguageConfig,
    PerplexityConfig,
    PersonalDataConfig,
    RepeatsConfig,
)

__all__ = [
    "ClassifierConfig",
    "Code",
    "DecontaminationConfig",
    "DeduplicationConfig",
    "ExecutorConfig",
    "Files",
    "HuggingFace",
    "LanguageConfig",
    "PerplexityConfig",
    "PersonalDataConfig",
    "PrepareConfig",
    "PythonEnvironment",
    "QualityConfig",
    "QualityModelConfig",
    "RepeatsConfig",
    "S3Prefix",
    "Source",
    "TokenizerConfig",
    "ToxicityConfig",
]
