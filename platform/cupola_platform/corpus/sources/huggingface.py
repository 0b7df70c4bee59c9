"""Datasets from the Hugging Face Hub and local folders, streamed."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from cupola_platform.corpus.config import HuggingFace
from cupola_platform.corpus.core.documents import EXCERPT
from cupola_platform.corpus.sources.formats import TRUNCATED, Limits, Row, row_of
from cupola_platform.corpus.sources.source_files import SourceFile, record_file
from cupola_platform.errors import SourceError
from cupola_platform.rows.opening import UNREADABLE


def check_dataset(source: HuggingFace) -> None:
    """Raises SourceError if the dataset, its split or its text column does not exist, or it has no rows."""
    rows = iter(_open(source))
    try:
        first = next(rows, None)
    except Exception as error:
        raise SourceError(_unreachable(source, error)) from error
    if first is None:
        raise SourceError(f"{_where(source)} has no rows. Choose another split.")
    key = "messages_field" if source.messages_field else "text_field"
    if getattr(source, key) not in first:
        raise SourceError(
            f"{_where(source)} has no column {getattr(source, key)!r}. It has {', '.join(first)}: set {key}."
        )


def dataset_state(source: HuggingFace) -> str:
    """The Hub's commit, or names, sizes and times of a folder's files. Raises SourceError if it cannot be reached."""
    folder = Path(source.name).expanduser()
    if folder.is_dir():
        stats = [(path, path.stat()) for path in _files(folder)]
        return "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(source.name, revision=source.revision).sha)
    except Exception as error:
        raise SourceError(_unreachable(source, error)) from error


def dataset_rows(name: str, source: HuggingFace, limits: Limits, files: list[SourceFile]) -> Iterator[tuple[str, Row]]:
    """Every row of the split, with the dataset's name as the path. A damaged file ends in a refused row."""
    from datasets.exceptions import DatasetsError

    folder = Path(source.name).expanduser()
    local = folder.is_dir()
    if local:
        files.extend(record_file(name, str(path), path) for path in _files(folder))
    digest, size, number = blake3(), 0, 0
    rows = _open(source)
    try:
        for number, row in enumerate(rows, start=1):
            outcome = row_of(number, row, 0, limits)
            if outcome.text is not None and not local:
                digest.update(outcome.text.encode())
                size += outcome.size
            yield _where(source), outcome
    except (*UNREADABLE, DatasetsError) as error:
        yield _where(source), Row(number + 1, None, 0, TRUNCATED, _first_line(error)[:EXCERPT])
    finally:
        if not local:  # the Hub's files are not accessible, so record the data read from them
            files.append(SourceFile(name, _where(source), size, digest.hexdigest()))


def _open(source: HuggingFace) -> Iterable[dict[str, Any]]:
    import datasets

    folder = Path(source.name).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = datasets.load_from_disk(str(folder))
            rows = saved[source.split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            rows = datasets.load_dataset(
                str(folder) if folder.is_dir() else source.name,
                source.subset,
                split=source.split,
                revision=source.revision,
                streaming=True,
            )
    except Exception as error:
        raise SourceError(_unreachable(source, error)) from error
    return rows  # type: ignore[no-any-return]


def _where(source: HuggingFace) -> str:
    subset = f"/{source.subset}" if source.subset else ""
    revision = f"@{source.revision}" if source.revision else ""
    return f"hf://{source.name}{revision}{subset}/{source.split}"


def _unreachable(source: HuggingFace, error: Exception) -> str:
    return (
        f"name={source.name!r}, split={source.split!r} cannot be read: {_first_line(error)}. "
        "Give a Hub dataset that this machine can reach, or a local folder."
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
