"""Every source of text as one stream of documents, with a record of each file that was read."""

import glob
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from cupola_platform.corpus.config import Files, HuggingFace, PythonEnvironment, S3Prefix, Source
from cupola_platform.corpus.documents import Document, Drop
from cupola_platform.corpus.formats import KNOWN, Limits, Row, admit, format_of, read_rows
from cupola_platform.corpus.python_environment import description, environment_files, environment_state
from cupola_platform.corpus.records import SourceFile, record_file
from cupola_platform.errors import SourceError


def check_source(source: Source) -> None:
    """Refuse a source that cannot give any text, before anything starts.

    Raises:
        SourceError: it is missing, empty, of no known format, or cannot be reached.
    """
    match source:
        case Files():
            _check_files(source)
        case S3Prefix():
            from cupola_platform.corpus.s3 import check_prefix

            check_prefix(source)
        case HuggingFace():
            from cupola_platform.corpus.huggingface import check_dataset

            check_dataset(source)
        case PythonEnvironment():
            if next(environment_files(source), None) is None:
                raise SourceError(
                    f"parts={list(source.parts)}: this Python has no such files. Try parts: [standard_library]."
                )


def source_state(source: Source) -> str:
    """A BLAKE3 digest that changes when what the source would read has changed, without reading it.

    Files by name, size and time of change; an environment by its packages' versions; objects by name, size and ETag.
    """
    match source:
        case Files():
            stats = [(path, path.stat()) for path in _matching(source)]
            state = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
        case S3Prefix():
            from cupola_platform.corpus.s3 import prefix_state

            state = prefix_state(source)
        case HuggingFace():
            from cupola_platform.corpus.huggingface import dataset_state

            state = dataset_state(source)
        case PythonEnvironment():
            state = environment_state()
    return blake3(state.encode()).hexdigest()


def source_size(source: Source) -> int:
    """About how many bytes of text a source will give; 0 when that is not known without reading it."""
    match source:
        case Files():
            size = sum(path.stat().st_size for path in _matching(source))
        case S3Prefix():
            from cupola_platform.corpus.s3 import prefix_size

            size = prefix_size(source)
        case HuggingFace():
            size = source.max_bytes or 0
        case PythonEnvironment():
            size = 0
            for path, _ in environment_files(source):
                size += path.stat().st_size
                if source.max_bytes and size > source.max_bytes:
                    break
    return min(size, source.max_bytes or size)


def read_source(
    name: str, source: Source, *, max_document_bytes: int, files: list[SourceFile]
) -> Iterator[Document | Drop]:
    """Every document of a source, in a fixed order, or why it is none; appends to `files` as they are opened.

    Raises:
        SourceError: the source is missing or cannot be read.
    """
    limits = Limits(getattr(source, "text_field", "text"), max_document_bytes)
    taken = 0
    for path, row in _rows(name, source, limits, files):
        if row.text is None:
            yield Drop(row.reason, f"{path}#{row.number}" if row.number else path, row.size, row.detail)
            continue
        taken += row.size
        if source.max_bytes is not None and taken > source.max_bytes:
            return
        yield Document(name, path, row.number, row.text, row.size)


def _rows(name: str, source: Source, limits: Limits, files: list[SourceFile]) -> Iterator[tuple[str, Row]]:
    match source:
        case Files():
            for path in _matching(source):
                files.append(record_file(name, str(path), path))
                for row in read_rows(path, path.name, limits):
                    yield str(path), row
        case S3Prefix():
            from cupola_platform.corpus.s3 import prefix_rows

            yield from prefix_rows(name, source, limits, files)
        case HuggingFace():
            from cupola_platform.corpus.huggingface import dataset_rows

            yield from dataset_rows(name, source, limits, files)
        case PythonEnvironment():
            for path, label in environment_files(source):
                files.append(record_file(name, label, path))
                for row in read_rows(path, "file.txt", limits):
                    if label.endswith("/METADATA") and row.text is not None:
                        row = admit(0, description(row.text), limits)
                    yield label, row


def _matching(source: Files) -> list[Path]:
    """The files that a `files` source names, sorted by path."""
    given = Path(source.path).expanduser()
    if given.is_dir():
        candidates = [path for path in given.rglob("*") if path.is_file()]
    elif given.is_file():
        candidates = [given]
    else:
        candidates = [Path(path) for path in glob.glob(str(given), recursive=True) if Path(path).is_file()]
    return sorted(path for path in candidates if format_of(path.name))


def _check_files(source: Files) -> None:
    given = Path(source.path).expanduser()
    matching = _matching(source)
    if not matching:
        if given.is_file():
            raise SourceError(f"path={source.path!r} has no format that we read. Known are {KNOWN}.")
        if given.is_dir() or glob.glob(str(given), recursive=True):
            raise SourceError(f"path={source.path!r} holds no file of a known format. Known are {KNOWN}.")
        near = "" if glob.has_magic(source.path) else _nearest_parent(given)
        raise SourceError(f"path={source.path!r} does not exist.{near} Give a file, a folder or a glob.")
    if not any(path.stat().st_size for path in matching):
        raise SourceError(f"path={source.path!r}: all {len(matching)} files are empty. Give a source that holds text.")


def _nearest_parent(path: Path) -> str:
    parent = next((parent for parent in path.absolute().parents if parent.exists()), None)
    return f" The nearest folder that does is {parent}." if parent else ""
