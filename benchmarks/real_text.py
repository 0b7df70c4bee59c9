"""A corpus of real text in many languages from Debian packages: manuals, handbooks, help pages and source code.

    python benchmarks/real_text.py FOLDER       # downloads (apt-get download) and unpacks; about 1.3 GB of files

None of it is part of this repository; each package states its licence in usr/share/doc/NAME/copyright.
"""

import argparse
import os
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from blake3 import blake3

from cupola_platform.corpus.config import Files, PythonEnvironment, Source
from cupola_platform.corpus.core.documents import Document
from cupola_platform.corpus.sources.reader import read_source

MAN = ["zh", "ja", "de", "fr", "es", "ru", "pl", "it", "pt-br", "nl", "ro", "hu", "cs", "da", "dev"]
HELP = ["en-us", "zh-cn", "zh-tw", "ja", "ko", "de", "fr", "es", "ru", "it", "pt-br", "vi", "tr", "el"]
PACKAGES = [
    *(f"manpages-{language}" for language in ("dev", *MAN[:-1])),
    *(f"libreoffice-help-{language}" for language in HELP),
    *("debian-handbook", "python3.11-doc", "postgresql-doc-15", "cppreference-doc-en-html", "linux-doc-6.1"),
    *("gap-doc", "maxima-doc", "pari-doc", "perl-doc", "debian-reference-zh-cn", "debian-reference-ja"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    build(parser.parse_args().folder.absolute())


def build(folder: Path) -> None:
    """Download and unpack missing packages; those not on the mirror are reported and skipped."""
    downloads = folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        to = folder / "files" / package
        if to.exists():
            continue
        if subprocess.run(["apt-get", "download", "-qq", package], cwd=downloads, check=False).returncode:
            print(f"{package}: not available here", file=sys.stderr)
            continue
        to.parent.mkdir(exist_ok=True)
        (archive,) = downloads.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, to], check=True)
        archive.unlink()


def real_sources(folder: Path | None, size: int | None = None) -> dict[str, Source]:
    """Sources over the result of `build` in `folder`; by default text that is on every machine, without Chinese.

    With `size`, only about that many decompressed bytes of files from all packages (as links in `parts/`).
    """
    if folder is None:
        return {"python": PythonEnvironment(max_bytes=size)}
    files = part_of(folder.absolute(), size) if size else folder.absolute() / "files"
    paths = {
        "manuals": "manpages-*/usr/share/man/**/*.gz",
        "help": "libreoffice-help-*/**/*.html",
        "handbook": "debian-handbook/**/*.html",
        "documentation": "*-doc*/usr/share/doc/**/*.html",
    }
    return {name: Files(path=str(files / path)) for name, path in paths.items() if any(files.glob(path))}


def part_of(folder: Path, size: int) -> Path:
    """A folder with links to about `size` bytes of files from all packages, in order of their names' digests."""
    files, part = folder / "files", folder / "parts" / str(size)
    if part.exists():
        return part
    found = [path for path in files.rglob("*") if path.suffix in (".gz", ".html") and not path.is_symlink()]
    found = [path for path in found if path.is_file()]
    unfinished = part.with_name(f"{size}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for path in sorted(found, key=lambda path: blake3(str(path.relative_to(files)).encode()).digest()):
        if size <= 0:
            break
        link = unfinished / path.relative_to(files)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
        size -= decompressed(path)
    return unfinished.rename(part)


def decompressed(path: Path) -> int:
    """Bytes of a file's content; gzip stores them in its last four bytes."""
    if path.suffix != ".gz":
        return path.stat().st_size
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(), "little")


def bytes_of(sources: dict[str, Source]) -> int:
    """Decompressed bytes of all files of `files` sources."""
    paths = (
        path for source in sources.values() if isinstance(source, Files) for path in glob(source.path, recursive=True)
    )
    return sum(map(decompressed, map(Path, paths)))


def real_texts(folder: Path | None, size: int) -> list[str]:
    """The text of about `size` bytes of files."""
    return [
        document.text
        for name, source in real_sources(folder, size).items()
        for document in read_source(name, source, max_document_bytes=2_000_000, files=[])
        if isinstance(document, Document)
    ]


if __name__ == "__main__":
    main()
