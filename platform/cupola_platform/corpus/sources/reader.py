"""Reads any source as one stream of documents, and records each file read."""

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from blake3 import blake3

from cupola_platform.corpus.config import Code, Files, HuggingFace, PythonEnvironment, S3Prefix, Source
from cupola_platform.corpus.core.documents import Document, Drop
from cupola_platform.corpus.core.licences import licence_of
from cupola_platform.corpus.sources.formats import KNOWN, Limits, Row, admit, format_of, read_rows
from cupola_platform.corpus.sources.python_environment import description, environment_files, environment_state
from cupola_platform.corpus.sources.source_files import SourceFile, record_file
from cupola_platform.errors import SourceError
from cupola_platform.rows.opening import COMPRESSIONS
from cupola_platform.rows.reading import KNOWN as ROWS


def check_source(source: Source) -> None:
    """Refuse a source that cannot provide text, before anything starts.

    Raises:
        SourceError: the source is missing, empty, of an unknown format, or cannot be reached.
    """
    _check_conversations(source)
    match source:
        case Files():
            _check_files(source)
        case Code():
            if next(_code_files(source), None) is None:
                raise SourceError(
                    f"path={source.path!r} has no files of {' '.join(source.suffixes)}. "
                    "Give another folder or other suffixes."
                )
        case S3Prefix():
            from cupola_platform.corpus.sources.s3 import check_prefix

            check_prefix(source)
        case HuggingFace():
            from cupola_platform.corpus.sources.huggingface import check_dataset

            check_dataset(source)
        case PythonEnvironment():
            if next(environment_files(source), None) is None:
                raise SourceError(
                    f"parts={list(source.parts)}: this Python has no such files. Try parts: [standard_library]."
                )


def _check_conversations(source: Source) -> None:
    """Refuse conversations from files that are not rows."""
    if isinstance(source, Files | S3Prefix) and source.messages_field:
        for entry in source_entries(source):
            if format_of(entry.label) != "rows":
                raise SourceError(
                    f"messages_field={source.messages_field!r}: {entry.label} has no rows. Name files of rows only: "
                    f"{ROWS}."
                )


def source_state(source: Source) -> str:
    """A BLAKE3 digest that changes with the source's content, computed without reading it.

    It covers files by name, size and modification time, an environment by its packages' versions, and objects by name,
    size and ETag.
    """
    match source:
        case Files() | Code():
            paths = _code_files(source) if isinstance(source, Code) else _matching(source)
            stats = [(path, path.stat()) for path in paths]
            state = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
        case S3Prefix():
            from cupola_platform.corpus.sources.s3 import prefix_state

            state = prefix_state(source)
        case HuggingFace():
            from cupola_platform.corpus.sources.huggingface import dataset_state

            state = dataset_state(source)
        case PythonEnvironment():
            state = environment_state()
    return blake3(state.encode()).hexdigest()


class Entry(NamedTuple):
    """One file, object or dataset of a source."""

    location: str
    """Where to read it."""

    label: str
    """Its name in documents and `sources.jsonl`."""

    size: int
    """Stored bytes; 0 if unknown."""


def source_entries(source: Source) -> Iterator[Entry]:
    """The entries of a source, in reading order."""
    match source:
        case Files():
            yield from (Entry(str(path), str(path), path.stat().st_size) for path in _matching(source))
        case S3Prefix():
            from cupola_platform.corpus.sources.s3 import prefix_objects

            yield from (Entry(item.url, item.url, item.size) for item in prefix_objects(source))
        case Code():
            yield from (Entry(str(path), str(path), path.stat().st_size) for path in _code_files(source))
        case HuggingFace():
            yield Entry(source.name, source.name, 0)
        case PythonEnvironment():
            yield from (Entry(str(path), label, path.stat().st_size) for path, label in environment_files(source))


def source_pieces(source: Source, piece_bytes: int, max_pieces: int) -> list[list[Entry]]:
    """A source's entries in consecutive groups of about `piece_bytes`, or more to stay within `max_pieces`. One task
    reads each.

    With `max_bytes`, plain files are counted by size beforehand; anything that must be read to be measured is one
    piece.
    """
    entries: Iterable[Entry] = source_entries(source)
    if source.max_bytes is not None:
        if not isinstance(source, PythonEnvironment | Code):
            entries = list(entries)
            if not all(map(_is_plain, entries)):
                return [entries]
        entries = _within(entries, source.max_bytes)
    entries = list(entries)
    piece_bytes = max(piece_bytes, sum(entry.size for entry in entries) // max_pieces)
    pieces: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if pieces[-1] and filled + entry.size > piece_bytes:
            pieces.append([])
            filled = 0
        pieces[-1].append(entry)
        filled += entry.size
    return pieces


def _is_plain(entry: Entry) -> bool:
    return format_of(entry.label) == "text" and PurePosixPath(entry.label).suffix.lower() not in COMPRESSIONS


def _within(entries: Iterable[Entry], max_bytes: int) -> Iterator[Entry]:
    for entry in entries:
        max_bytes -= entry.size
        if max_bytes < 0:
            return
        yield entry


def read_source(
    name: str,
    source: Source,
    *,
    max_document_bytes: int,
    files: list[SourceFile],
    entries: Iterable[Entry] | None = None,
) -> Iterator[Document | Drop]:
    """Every document of a source, in a fixed order, or the reason it was dropped. Opened files are appended to `files`.

    Args:
        entries: the entries to read; None for all.

    Raises:
        SourceError: the source is missing or cannot be read.
    """
    limits = Limits(
        getattr(source, "text_field", "text"),
        max_document_bytes,
        getattr(source, "whole_pages", False),
        getattr(source, "messages_field", None),
    )
    taken = 0
    for path, row in _rows(name, source, limits, files, source_entries(source) if entries is None else entries):
        if row.text is None:
            yield Drop(row.reason, f"{path}#{row.number}" if row.number else path, row.size, row.detail)
            continue
        licence = source.licence
        if isinstance(source, Code):
            licence = licence or licence_of(row.text, Path(path), Path(source.path).expanduser())
            if source.licences and licence not in source.licences:
                yield Drop(f"licence {licence}", path, row.size)
                continue
        taken += row.size
        if source.max_bytes is not None and taken > source.max_bytes:
            return
        yield Document(name, path, row.number, row.text, row.size, licence=licence, begin=row.begin, end=row.end)


def _rows(
    name: str, source: Source, limits: Limits, files: list[SourceFile], entries: Iterable[Entry]
) -> Iterator[tuple[str, Row]]:
    match source:
        case S3Prefix():
            from cupola_platform.corpus.sources.s3 import prefix_rows

            yield from prefix_rows(name, [entry.location for entry in entries], limits, files)
        case HuggingFace():
            from cupola_platform.corpus.sources.huggingface import dataset_rows

            yield from dataset_rows(name, source, limits, files)
        case Files():
            for path, label, _ in entries:
                files.append(record_file(name, label, Path(path)))
                for row in read_rows(Path(path), Path(path).name, limits):
                    yield label, row
        case Code():
            for path, label, _ in entries:
                files.append(record_file(name, label, Path(path)))
                for row in read_rows(Path(path), "file.txt", limits):
                    yield label, row
        case PythonEnvironment():
            for path, label, _ in entries:
                files.append(record_file(name, label, Path(path)))
                for row in read_rows(Path(path), "file.txt", limits):
                    if label.endswith("/METADATA") and row.text is not None:
                        row = admit(0, description(row.text), limits)
                    yield label, row


def _code_files(source: Code) -> Iterator[Path]:
    """Files of the wanted types, in a fixed order. Links and pipes are skipped, since they may lead out of an untrusted
    tree."""
    for folder, folders, files in os.walk(Path(source.path).expanduser()):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(folder, name) for name in sorted(files) if name.endswith(source.suffixes))
        yield from (path for path in paths if stat.S_ISREG(path.lstat().st_mode))


def _matching(source: Files) -> list[Path]:
    """The files of a `files` source, sorted by path."""
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
            raise SourceError(f"path={source.path!r} has an unknown format. Known: {KNOWN}.")
        if given.is_dir() or glob.glob(str(given), recursive=True):
            raise SourceError(f"path={source.path!r} has no files of a known format. Known: {KNOWN}.")
        near = "" if glob.has_magic(source.path) else _nearest_parent(given)
        raise SourceError(f"path={source.path!r} does not exist.{near} Give a file, a folder or a glob.")
    if not any(path.stat().st_size for path in matching):
        raise SourceError(f"path={source.path!r}: all {len(matching)} files are empty. Give a source with text.")


def _nearest_parent(path: Path) -> str:
    parent = next((parent for parent in path.absolute().parents if parent.exists()), None)
    return f" The nearest existing folder is {parent}." if parent else ""
