"""Reading conversations and pairs from third-party files, in every common format and shape.

Called in-process by flows; imports no torch.
"""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass as plain_dataclass
from pathlib import Path

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.artifacts.digests import digest_file, digest_files
from cupola_platform.errors import SourceError
from cupola_platform.json_lines import BadLineError, Row
from cupola_platform.rows.drops import Drops
from cupola_platform.rows.reading import FORMATS, KNOWN, read, suffix_of
from cupola_platform.strict import STRICT
from cupola_trainer.data import shapes, trees


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RowFiles:
    """Files of rows, or a dataset of rows."""

    path: str | None = None
    """A file, a folder (searched recursively) or a glob (`**` for any depth) of rows: JSON lines, a JSON array,
    Parquet, Arrow, CSV or TSV, optionally compressed. Either this or `dataset`."""

    dataset: str | None = None
    """A dataset on the Hugging Face Hub, or a local dataset folder."""

    split: str = "train"
    """The dataset's split."""

    source: str | None = None
    """Source name of the rows; None for the file's or dataset's name."""

    tag: str | None = None
    """Tag for rows without one; training can balance tags."""

    @model_validator(mode="after")
    def _one_source(self) -> "RowFiles":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("rows come from either `path` or `dataset`: give one of them")
        return self


Reader = Callable[[RowFiles, Counter[str]], Iterator[Row]]


@plain_dataclass(frozen=True)
class Place:
    """The location of a row."""

    name: str
    """Used in ids."""
    where: str
    """For messages: file and line."""


def state(files: RowFiles) -> str:
    """The files' state for a fingerprint: digests of local files; the name of a dataset on the Hub.

    Raises:
        SourceError: no file matches.
    """
    if files.path:
        return digest_files((str(path), digest_file(path)) for path in _matching(files.path))
    folder = Path(str(files.dataset)).expanduser()
    if not folder.is_dir():
        return f"{files.dataset}/{files.split}"
    return digest_files((str(path), digest_file(path)) for path in folder.rglob("*") if path.is_file())


def usable(read: Reader, files: RowFiles, drops: Drops) -> list[Row]:
    """All rows from `read_conversations` or `read_pairs`.

    Raises:
        SourceError: reading failed, or no row is usable; the message says why.
    """
    mine = Drops()
    rows = list(read(files, mine))
    drops.add(mine)
    if not rows:
        given = f"path={files.path!r}" if files.path else f"dataset={files.dataset!r}"
        raise SourceError(
            f"{given} holds no usable row; dropped: {mine.in_words()}. Fix the rows, or name other files."
        )
    return rows


def read_conversations(files: RowFiles, drops: Counter[str]) -> Iterator[Row]:
    """Rows {"id", "source", "messages", "task": null}, plus "tools", "tag", "tests" if present, see
    `shapes.conversation`; unusable rows are counted in `drops`.

    Raises:
        SourceError: a file does not exist, or a dataset cannot be read; the message says why.
    """
    return _shaped(files, drops, shapes.conversation, trees.best_path)


def read_pairs(files: RowFiles, drops: Counter[str]) -> Iterator[Row]:
    """Rows {"id", "source", "messages", "chosen", "rejected", "chosen_score", "rejected_score", "task": null}, see
    `shapes.pair`; unusable rows are counted in `drops`.

    Raises:
        SourceError: a file does not exist, or a dataset cannot be read; the message says why.
    """
    return _shaped(files, drops, shapes.pair, trees.ranked_pairs)


def _shaped(
    files: RowFiles, drops: Counter[str], shape: Callable[[Row], Row], of_tree: Callable[[Row], Iterator[Row]]
) -> Iterator[Row]:
    mine, source = Drops(), files.source or _stem(files)
    for place, number, row in trees.grown(_rows(files, mine), of_tree):
        try:
            made = shape(row)
        except BadLineError as error:
            mine.drop(error.reason, place.where, str(error))
            continue
        about = {"id": f"{place.name}-{number}" if number else place.name, "source": source}
        tag = {"tag": files.tag} if files.tag and "tag" not in made else {}
        yield {**about, **made, "task": None, **tag}
    if isinstance(drops, Drops):  # records locations too
        drops.add(mine)
    else:
        drops.update(mine)


def _rows(files: RowFiles, drops: Drops) -> Iterator[tuple[Place, Row]]:
    if files.dataset:
        for number, row in enumerate(_dataset(files)):
            yield Place(f"{files.dataset}/{number}", f"{files.dataset}, row {number}"), row
        return
    paths = _matching(str(files.path))
    common = os.path.commonpath([path.parent for path in paths])
    alike = Counter(path.name for path in paths)
    for path in paths:
        name = path.name if alike[path.name] == 1 else path.relative_to(common).as_posix()
        for record in read(path):
            if record.row is None:
                drops.record(record, str(path))
            else:
                yield Place(f"{name}/{record.number}", record.where(str(path))), record.row


def _dataset(files: RowFiles) -> Iterator[Row]:
    import datasets

    folder = Path(str(files.dataset)).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = datasets.load_from_disk(str(folder))
            rows = saved[files.split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            name = str(folder) if folder.is_dir() else files.dataset
            rows = datasets.load_dataset(name, split=files.split, streaming=True)
        yield from rows
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"dataset={files.dataset!r}, split={files.split!r} cannot be read: {first}. "
            "Give a dataset on the Hub that this machine can reach, or a local folder."
        ) from error


def _matching(pattern: str) -> list[Path]:
    """The files that a path matches, sorted. In a folder or glob, those with a known suffix; for a file or glob, all if
    there are none."""
    given = Path(pattern).expanduser()
    if given.is_dir():
        paths = [path for path in given.rglob("*") if not any(p.startswith(".") for p in path.relative_to(given).parts)]
    else:
        paths = list(map(Path, glob.glob(str(given), recursive=True)))
    files = sorted(path for path in paths if path.is_file())
    named = [path for path in files if suffix_of(path.name) in FORMATS]
    if not files or (given.is_dir() and not named):
        raise SourceError(f"path={pattern!r} matches no file of rows. Supported formats: {KNOWN}.")
    return named or files


def _stem(files: RowFiles) -> str:
    return Path(str(files.path or files.dataset)).name.split(".")[0].replace("*", "") or "files"
