"""A corpus of real text in many languages, out of Debian packages: manuals, handbooks, help pages and source code.

    python benchmarks/real_text.py FOLDER       # downloads (apt-get download) and unpacks; about 1.3 GB of files

Nothing of it belongs to this repository; every package says its licence in usr/share/doc/NAME/copyright.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cupola_platform.corpus.config import Files, PythonEnvironment, Source
from cupola_platform.corpus.documents import Document
from cupola_platform.corpus.sources import read_source

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
    """Download and unpack what is not there yet; a package that the mirror lacks is named and left out."""
    downloads = folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        to = folder / "files" / package
        if to.exists():
            continue
        if subprocess.run(["apt-get", "download", "-qq", package], cwd=downloads, check=False).returncode:
            print(f"{package}: not to be had here", file=sys.stderr)
            continue
        to.parent.mkdir(exist_ok=True)
        (archive,) = downloads.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, to], check=True)
        archive.unlink()


def real_sources(folder: Path | None, max_bytes: int | None = None) -> dict[str, Source]:
    """Sources over what `build` left in `folder`; without one the text that every machine has, which is no Chinese.

    `max_bytes` is shared by the sources alike.
    """
    if folder is None:
        return {"python": PythonEnvironment(max_bytes=max_bytes)}
    files = folder.absolute() / "files"
    paths = {
        "manuals": "manpages-*/usr/share/man/**/*.gz",
        "help": "libreoffice-help-*/**/*.html",
        "handbook": "debian-handbook/**/*.html",
        "documentation": "*-doc*/usr/share/doc/**/*.html",
    }
    share = max_bytes // len(paths) if max_bytes else None
    return {name: Files(path=str(files / path), max_bytes=share) for name, path in paths.items()}


def real_texts(folder: Path | None, size: int) -> list[str]:
    """About `size` bytes of text, in equal parts of every source."""
    return list(_texts(folder, size))


def _texts(folder: Path | None, size: int) -> Iterator[str]:
    for name, source in real_sources(folder, size).items():
        for document in read_source(name, source, max_document_bytes=2_000_000, files=[]):
            if isinstance(document, Document):
                yield document.text


if __name__ == "__main__":
    main()
