"""The steps that a preparation applies to each document, and what each task reads."""

import json
from pathlib import Path

from cupola_platform.corpus.config import PrepareConfig
from cupola_platform.corpus.core.documents import Step
from cupola_platform.corpus.core.tasks import write
from cupola_platform.corpus.filters.classifier import QualityModel
from cupola_platform.corpus.filters.decontamination import Decontamination
from cupola_platform.corpus.filters.language import LanguageFilter
from cupola_platform.corpus.filters.perplexity import PerplexityFilter
from cupola_platform.corpus.filters.personal_data import PersonalDataMask
from cupola_platform.corpus.filters.quality import QualityFilter
from cupola_platform.corpus.filters.toxicity import ToxicityFilter
from cupola_platform.corpus.filters.unicode_repair import UnicodeRepair
from cupola_platform.corpus.sources.reader import source_pieces
from cupola_platform.durable import sync_file_system, write_text

PIECE_BYTES = 4_000_000
"""Stored bytes per task, in whole files; more if a source would have over `MAX_PIECES` tasks."""

MAX_PIECES = 1000


def document_steps(config: PrepareConfig, work: Path) -> list[Step]:
    """The steps that process one document at a time, in order."""
    steps: list[Step] = [UnicodeRepair()]
    if config.language:
        steps.append(LanguageFilter(config.language))
    if config.quality:
        steps.append(QualityFilter(config.quality, config.conversations))
    if config.quality_model:
        steps.append(QualityModel(config.quality_model, models(work) / "quality_model"))
    if config.perplexity:
        command = json.loads((work / "scorer.json").read_text(encoding="utf-8"))
        steps.append(PerplexityFilter(config.perplexity, (*command, str(config.perplexity.max_bytes))))
    if config.toxicity:
        steps.append(ToxicityFilter(config.toxicity, models(work) / "toxicity.classifier"))
    if config.decontamination:
        steps.append(Decontamination(config.decontamination, work / "items"))
    if config.personal_data:
        steps.append(PersonalDataMask(config.personal_data))
    return steps


def models(work: Path) -> Path:
    """The folder of the classifiers, by their keys in the config; the artifact has a folder of the same name."""
    return work / "models"


def plan(config: PrepareConfig, work: Path) -> list[str]:
    """Write what each task reads, and return each task's source. The plan depends on the sources only, not on the
    number of workers."""
    folder = work / "plan"
    done = folder / "sources.json"
    if done.exists():
        return list(json.loads(done.read_text(encoding="utf-8")))
    tasks = [
        (name, piece)
        for name, source in config.sources.items()
        for piece in source_pieces(source, PIECE_BYTES, MAX_PIECES)
    ]
    for rank, (name, piece) in enumerate(tasks):
        write(folder / f"{rank:05d}.json", json.dumps({"source": name, "entries": piece}))
    sources = [name for name, _ in tasks]
    sync_file_system(folder)
    write_text(done, json.dumps(sources))
    return sources
