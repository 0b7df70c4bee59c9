"""Where text comes from. Light to import: recipes embed it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cupola_platform.corpus.core.licences import PERMISSIVE
from cupola_platform.strict import STRICT

Part = Literal["descriptions", "standard_library", "packages"]


class Share(BaseModel):
    """How much of a source to take."""

    model_config = ConfigDict(**STRICT, frozen=True)

    max_bytes: int | None = Field(default=None, ge=1)
    """Stop before the document that would exceed this many bytes of text; none to read everything."""

    weight: float | None = Field(default=None, gt=0)
    """Share of training samples, over the sum of all weights; without any, shares are in proportion to tokens. Give
    every source of a corpus a weight, or none of them."""

    licence: str = ""
    """SPDX identifier of all its documents, stored with each; empty where unknown or stated in each file."""


class Rows(Share):
    """A source that may contain tables."""

    text_field: str = Field(default="text", min_length=1)
    """The column of its rows that holds the text."""

    messages_field: str | None = None
    """The column that holds a conversation instead of a text, in any shape that fine-tuning accepts. The chat template
    turns it into a document. Only rows hold conversations: JSON, CSV, Parquet, Arrow, datasets."""

    whole_pages: bool = False
    """Take all text of HTML pages, menus and footers too; false for the main text (trafilatura)."""


class PythonEnvironment(Share):
    """Text that every machine has: Python's standard library and the installed packages."""

    type: Literal["python_environment"] = "python_environment"

    parts: tuple[Part, ...] = Field(default=("descriptions", "standard_library", "packages"), min_length=1)
    """Read in this order: packages' long descriptions, the standard library's code, packages' code (tests left out)."""


class Files(Rows):
    """Files on this machine: text (txt, md, rst, py), html, warc, man pages, notebooks, and rows (JSON lines, JSON
    arrays, CSV, TSV, Parquet, Arrow); each also as .gz, .zst, .bz2 or .xz."""

    type: Literal["files"] = "files"

    path: str = Field(min_length=1)
    """A file, a folder (searched to any depth), or a glob (`**` for any depth)."""


class Code(Share):
    """A tree of source code: files of some types under some licences."""

    type: Literal["code"] = "code"

    path: str = Field(min_length=1)
    """A folder, searched to any depth; links, and folders that begin with a dot, are left out."""

    suffixes: tuple[str, ...] = Field(
        default=(".py", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".js", ".ts"), min_length=1
    )
    """Types of files to read."""

    licences: tuple[str, ...] = PERMISSIVE
    """SPDX identifiers to keep, `unknown` for files without any; empty to keep all. A file's own header counts first,
    then the nearest licence file above it."""


class S3Prefix(Rows):
    """Objects of an S3 bucket, of the same formats as `files`."""

    type: Literal["s3"] = "s3"

    url: str = Field(pattern=r"^s3://[^/@]+(/.*)?$")
    """`s3://bucket/prefix`: every object of a known format whose key begins with the prefix."""


class HuggingFace(Rows):
    """A dataset of the Hugging Face hub, or a local folder of one."""

    type: Literal["huggingface"] = "huggingface"

    name: str = Field(min_length=1)
    """The dataset's name on the hub (`owner/name`), or a folder (data files, or written by `save_to_disk`)."""

    subset: str | None = None
    """The dataset's configuration, if it has several."""

    split: str = Field(default="train", min_length=1)
    """The split to read."""

    revision: str | None = None
    """A commit or tag of the hub's repository; none for the newest."""


Source = Annotated[PythonEnvironment | Files | Code | S3Prefix | HuggingFace, Field(discriminator="type")]
SourceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
