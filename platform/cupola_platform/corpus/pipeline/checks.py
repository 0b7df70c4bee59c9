"""Checks of a preparation before anything is read. Light to import."""

import importlib.util
import shutil
from collections.abc import Collection
from pathlib import Path

from blake3 import blake3

from cupola_platform.clusters import Cluster, SlurmCluster
from cupola_platform.corpus.config import ClassifierConfig, ExecutorConfig, PrepareConfig, Source
from cupola_platform.corpus.config.classifiers import ANY_LANGUAGE
from cupola_platform.corpus.filters.language import check_languages
from cupola_platform.corpus.sources.reader import check_source
from cupola_platform.corpus.tokenizer.ranks import check_vocabulary
from cupola_platform.errors import ConfigError, SourceError


def check_config(config: PrepareConfig) -> None:
    """Refuse a config that would fail later, such as missing sources or unknown languages. Reads no text.

    Raises:
        SourceError: a source is missing, empty or cannot be reached.
        ConfigError: a language is unknown or never identified, or the named vocabulary is not available.
    """
    for name, source in named_sources(config).items():
        try:
            check_source(source)
        except SourceError as error:
            raise SourceError(f"{name}: {error}") from error
    check_weights(config)
    for path in files_beside(config):
        if not path.is_file():
            raise ConfigError(f"{path} does not exist. toxicity.lexicon takes files, model a folder models/NAME.")
    for key, codes in _languages(config).items():
        check_languages(key, codes)
        if codes and config.language is None:
            raise ConfigError(
                f"{key} names languages, but language: null identifies none, so it would never apply. Set language, or "
                f"remove {key}."
            )
    check_vocabulary(config.tokenizer)


def _languages(config: PrepareConfig) -> dict[str, Collection[str]]:
    """The languages named in the config, by key."""
    return {
        "language.keep": config.language.keep if config.language else (),
        "quality.languages": config.quality.languages if config.quality else (),
        "quality_model.languages": config.quality_model.languages if config.quality_model else (),
        "perplexity.languages": config.perplexity.languages if config.perplexity else (),
        "toxicity.lexicon": config.toxicity.lexicon.keys() - {ANY_LANGUAGE} if config.toxicity else (),
    }


def named_sources(config: PrepareConfig) -> dict[str, Source]:
    """All sources that a preparation reads, by their keys in the config."""
    sources: dict[str, Source] = {f"sources.{name}": source for name, source in config.sources.items()}
    if config.decontamination:
        sources |= {f"decontamination.against.{name}": of for name, of in config.decontamination.against.items()}
    for key, classifier in classifiers(config).items():
        for side in ("positive", "negative"):
            sources |= {f"{key}.{side}.{name}": of for name, of in getattr(classifier, side).items()}
    return sources


def classifiers(config: PrepareConfig) -> dict[str, ClassifierConfig]:
    """The classifiers that a preparation trains, by their keys in the config."""
    configs: dict[str, ClassifierConfig] = {"quality_model": config.quality_model} if config.quality_model else {}
    if config.toxicity and config.toxicity.classifier:
        configs["toxicity.classifier"] = config.toxicity.classifier
    return configs


def files_beside(config: PrepareConfig) -> list[Path]:
    """Word lists and classifiers named in the config."""
    lists = list(config.toxicity.lexicon.values()) if config.toxicity else []
    folders = [of.model for of in classifiers(config).values() if of.model]
    return [
        path.expanduser()
        for path in [*lists, *(of / name for of in folders for name in ("weights.npz", "classifier.json"))]
    ]


def file_digests(config: PrepareConfig) -> dict[str, str]:
    """Digests of those files, on which the result depends."""
    return {str(path): blake3(path.read_bytes()).hexdigest() for path in files_beside(config) if path.is_file()}


def check_weights(config: PrepareConfig) -> None:
    """Raises ConfigError if only some sources have a weight, since the others' shares would be undefined."""
    without = [name for name, source in config.sources.items() if source.weight is None]
    if without and len(without) < len(config.sources):
        some = next(name for name in config.sources if name not in without)
        raise ConfigError(
            f"sources.{some} has a weight, but sources.{without[0]} has none. Give a weight to all sources or to none."
        )


def check_executor(config: ExecutorConfig, cluster: Cluster | None) -> None:
    """Raises ConfigError if a preparation cannot run there, or this machine cannot start it there."""
    if not prepares(config, cluster):
        raise ConfigError(
            "a preparation runs on this machine, on Slurm or on Ray, and needs a workspace that all nodes share. Leave "
            "run_on out, name such a cluster, or set executor.ray and the cluster's RAY_ADDRESS."
        )
    if isinstance(cluster, SlurmCluster) and not config.ray and shutil.which("sbatch") is None:
        raise ConfigError("run_on names a Slurm cluster, and sbatch is not on the PATH. Run this on a login node.")
    if config.ray and importlib.util.find_spec("ray") is None:
        raise ConfigError("executor.ray needs the package ray, which is not installed. Try pip install ray.")


def prepares(config: ExecutorConfig, cluster: Cluster | None) -> bool:
    """Whether a kind of cluster can run preparations."""
    return cluster is None or (cluster.shared and (config.ray or cluster.launcher in ("local", "slurm")))
