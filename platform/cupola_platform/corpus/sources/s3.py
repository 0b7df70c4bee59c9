"""Text in an S3 bucket: the objects under a prefix, each fetched and read like a local file."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from cupola_platform.corpus.config import S3Prefix
from cupola_platform.corpus.sources.formats import KNOWN, Limits, Row, format_of, read_rows
from cupola_platform.corpus.sources.source_files import SourceFile, record_file
from cupola_platform.errors import SourceError
from cupola_platform.store.objects import StoredObject, fetch_object, list_objects


def check_prefix(source: S3Prefix) -> None:
    """Raises SourceError if the prefix has nothing that can be read."""
    everything = list_objects(source.url)
    if not everything:
        raise SourceError(f"url={source.url!r} has no objects. Check the prefix; it may end inside a key.")
    matching = prefix_objects(source)
    if not matching:
        raise SourceError(f"url={source.url!r} has no objects of a known format. Known: {KNOWN}.")
    if not any(item.size for item in matching):
        raise SourceError(f"url={source.url!r}: all {len(matching)} objects are empty. Give a prefix with text.")


def prefix_state(source: S3Prefix) -> str:
    """Names, sizes and ETags, which change with the objects."""
    return "\n".join(f"{item.url} {item.size} {item.etag}" for item in prefix_objects(source))


def prefix_rows(name: str, urls: Sequence[str], limits: Limits, files: list[SourceFile]) -> Iterator[tuple[str, Row]]:
    """Every document of the objects, with its object's URL. One object at a time is on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "object")
        for url in urls:
            fetch_object(url, local)
            files.append(record_file(name, url, local))
            for row in read_rows(local, PurePosixPath(url).name, limits):
                yield url, row


def prefix_objects(source: S3Prefix) -> list[StoredObject]:
    """The objects under the prefix with a known format."""
    return [item for item in list_objects(source.url) if format_of(item.url)]
