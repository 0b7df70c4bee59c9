"""Settings of text sources. Light to import, because recipes embed them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cupola_platform.corpus.core.licences import PERMISSIVE
from cupola_platform.strict import STRICT

Part = Literal["descriptions", "standard_library", "packages"]


class Share(BaseModel):
    """How much of a source to take."""

    model_config = ConfigDict(**STRICT, frozen=True)

    max_bytes: int | None = Field(default=None, ge=1)
    """Stop before the document that would exceed this many bytes of text; None reads everything."""

    weight: float | None = Field(default=None, gt=0)
    """Share of training samples, relative to the sum of all weights. Without weights, shares are proportional to
    tokens. Give a weight to all sources of a corpus or to none."""

    licence: str = ""
    """SPDX identifier of all its documents, stored with each; empty if unknown or stated in each file."""


class Rows(Share):
    """A source that may contain tables."""

    text_field: str = Field(default="text", min_length=1)
    """The column with the text."""

    messages_field: str | None = None
    """The column with a conversation instead of text, in any form that fine-tuning accepts. The chat template turns it
    into a document. Only row formats have conversations: JSON, CSV, Parquet, Arrow, datasets."""

    whole_pages: bool = False
    """Read all text of HTML pages, including menus and footers; false for the main text only (trafilatura)."""


class PythonEnvironment(Share):
    """Text available on every machine: Python's standard library and the installed packages."""

    type: Literal["python_environment"] = "python_environment"

    parts: tuple[Part, ...] = Field(default=("descriptions", "standard_library", "packages"), min_length=1)
    """Parts to read, in this order: packages' long descriptions, the standard library, packages' code (without
    tests)."""


class Files(Rows):
    """Files on this machine: text (txt, md, rst, py), HTML, WARC, man pages, notebooks, and rows (JSON lines, JSON
    arrays, CSV, TSV, Parquet, Arrow); each also as .gz, .zst, .bz2 or .xz."""

    type: Literal["files"] = "files"

    path: str = Field(min_length=1)
    """A file, a folder (searched to any depth), or a glob (`**` for any depth)."""


class Code(Share):
    """A source code tree: files of the given types and licences."""

    type: Literal["code"] = "code"

    path: str = Field(min_length=1)
    """A folder, searched to any depth; links and hidden folders are skipped."""

    suffixes: tuple[str, ...] = Field(
        default=(".py", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".js", ".ts"), min_length=1
    )
    """File types to read."""

    licences: tuple[str, ...] = PERMISSIVE
    """SPDX identifiers to keep, `unknown` for files without one; empty keeps all. A file's own header takes precedence
    over the nearest licence file above it."""


class S3Prefix(Rows):
    """Objects in an S3 bucket, in the same formats as `files`."""

    type: Literal["s3"] = "s3"

    url: str = Field(pattern=r"^s3://[^/@]+(/.*)?$")
    """`s3://bucket/prefix`: every object of a known format whose key starts with the prefix."""


class HuggingFace(Rows):
    """A dataset from the Hugging Face Hub or a local folder."""

    type: Literal["huggingface"] = "huggingface"

    name: str = Field(min_length=1)
    """The dataset's name on the Hub (`owner/name`), or a folder of data files or from `save_to_disk`."""

    subset: str | None = None
    """The dataset's configuration, if it has several."""

    split: str = Field(default="train", min_length=1)
    """The split to read."""

    revision: str | None = None
    """A commit or tag of the Hub repository; None for the newest."""


Source = Annotated[PythonEnvironment | Files | Code | S3Prefix | HuggingFace, Field(discriminator="type")]
SourceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
