"""What can be known about a preparation before anything is read. Light to import."""

from cupola_platform.corpus.config import PrepareConfig
from cupola_platform.corpus.language import check_languages
from cupola_platform.corpus.ranks import check_vocabulary
from cupola_platform.corpus.sources import check_source
from cupola_platform.errors import SourceError


def check_config(config: PrepareConfig) -> None:
    """Refuse what would fail later: missing sources, unknown languages. Reads no text.

    Raises:
        SourceError: a source is missing, empty or cannot be reached.
        ConfigError: a language that does not exist, or no Qwen vocabulary where one is named.
    """
    for name, source in config.sources.items():
        try:
            check_source(source)
        except SourceError as error:
            raise SourceError(f"sources.{name}: {error}") from error
    if config.language:
        check_languages(config.language)
    check_vocabulary(config.tokenizer)
