"""The small files of a job's folder in the store: metrics, logs, reports, results, and what resuming needs.

A file is kept in blocks, so that only the end of a log that grows is sent again: `files/<path>/<number of the block>`.
Checkpoints (sealed folders) are kept apart, see `parts`.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cupola_platform.artifacts import MANIFEST
from cupola_platform.artifacts.digests import digest_bytes
from cupola_platform.durable import replacing
from cupola_platform.errors import NotFoundError, StoreError

if TYPE_CHECKING:
    from cupola_platform.store.plain import Objects

BLOCK = 1 << 20
"""Bytes of a block."""
RESULT = "result.json"
HANG = "hang.json"
REPORTS = frozenset({RESULT, "error.json", HANG})
"""How a start of the job ended. They are sent last, the result after everything that it names."""
OWN = frozenset({"heartbeats", "tokenizer"})
"""Folders that each node makes for itself."""
LOG = "log.txt"
"""What the ranks of all nodes print, as the job's first node collects it."""
GROWING = (".jsonl", ".txt")
"""Files that only grow, unless they are replaced."""


class Files:
    """The files of one folder, sent to the store or fetched from it. Only one process per file may send it."""

    def __init__(self, objects: "Objects", folder: Path, concerns: Callable[[str], bool]) -> None:
        """`concerns` tells which files are sent and fetched, by path."""
        self.objects, self.folder, self.concerns = objects.under("files"), folder, concerns
        self._blocks: dict[str, list[str]] = {}
        """Digests of the blocks that this node and the store both have, by file."""
        self._versions: dict[str, list[str]] = {}
        """The store's versions of these blocks."""
        self._stat: dict[str, tuple[int, int, int]] = {}

    def push(self, *, but: Collection[str] = ()) -> None:
        """Send what has changed on this node, and remove what was removed here, except for the files in `but`."""
        here = {path: self.folder / path for path in self._here() if self.concerns(path)}
        for path in sorted(here, key=lambda path: (path == RESULT, path in REPORTS, path)):
            if path not in but:
                self._send(path, here[path])
        for path in [path for path in self._blocks if path not in here and path not in REPORTS]:
            self.objects.remove(_key(path, number) for number in range(len(self._blocks.pop(path))))

    def pull(self, *, but: Collection[str] = (), exactly: bool = False) -> None:
        """Make the files on this node what they are in the store, except for those in `but`.

        Args:
            exactly: remove files that the store does not have; otherwise they stay.
        """
        there: dict[str, dict[int, str]] = defaultdict(dict)
        for name, (_, version) in self.objects.sizes().items():
            path, _, number = name.rpartition("/")
            if self.concerns(check_inside(path)):
                there[path][int(number)] = version
        for path in sorted(there, key=lambda path: (path == RESULT, path in REPORTS, path)):
            versions = [there[path][number] for number in sorted(there[path])]
            if path not in but and versions != self._versions.get(path):
                self._fetch(path, versions)
        for path in [path for path in self._here() if self.concerns(path)] if exactly else ():
            if path not in there or path in but:
                (self.folder / path).unlink()

    def names(self) -> set[str]:
        """The files in the store."""
        return {name.rpartition("/")[0] for name in self.objects.sizes()}

    def put(self, path: str, content: bytes) -> None:
        """Write a file that is in the store only."""
        self.remove([path])
        for number in range(max(1, -(-len(content) // BLOCK))):
            self.objects.write(_key(path, number), content[number * BLOCK : (number + 1) * BLOCK])

    def get(self, path: str) -> bytes | None:
        """A file as it is in the store; None if it is not there."""
        names = sorted(name for name in self.objects.under(path).sizes())
        return b"".join(self.objects.read(f"{path}/{name}") for name in names) if names else None

    def remove(self, paths: Collection[str]) -> None:
        """Remove files from the store."""
        if names := [name for name in self.objects.sizes() if name.rpartition("/")[0] in paths]:
            self.objects.remove(names)

    def _send(self, path: str, file: Path) -> None:
        try:
            now = file.stat()
            mark = (now.st_ino, now.st_size, now.st_mtime_ns)
            if mark == self._stat.get(path):
                return
            sent = self._blocks.get(path, [])
            first = self._first_changed(path, mark, len(sent))
            blocks = [*sent[:first]]
            with file.open("rb") as content:
                content.seek(first * BLOCK)
                while (block := content.read(BLOCK)) or not blocks:
                    number, digest = len(blocks), digest_bytes(block)
                    if number >= len(sent) or sent[number] != digest:
                        self.objects.write(_key(path, number), block)
                    blocks.append(digest)
                    if not block:
                        break
        except FileNotFoundError:  # replaced or removed meanwhile
            return
        self.objects.remove(_key(path, number) for number in range(len(blocks), len(sent)))
        self._blocks[path], self._stat[path] = blocks, mark

    def _first_changed(self, path: str, mark: tuple[int, int, int], sent: int) -> int:
        """The first block that may differ from what was sent."""
        inode, size, _ = self._stat.get(path, (0, 0, 0))
        if path.endswith(GROWING) and inode == mark[0] and size <= mark[1]:
            return min(size // BLOCK, max(sent - 1, 0))
        return 0

    def _fetch(self, path: str, versions: list[str]) -> None:
        known, kept = self._versions.get(path, []), self._blocks.get(path, [])
        first = next((i for i, pair in enumerate(zip(known, versions, strict=False)) if pair[0] != pair[1]), len(known))
        first = min(first, len(versions) - 1)
        try:
            new = [self.objects.read(_key(path, number)) for number in range(first, len(versions))]
        except NotFoundError:  # replaced by a shorter one meanwhile: the next pull sees it
            return
        file = self.folder / path
        self._place(file, first * BLOCK, b"".join(new))
        now = file.stat()
        self._versions[path], self._stat[path] = versions, (now.st_ino, now.st_size, now.st_mtime_ns)
        self._blocks[path] = [*kept[:first], *(digest_bytes(block) for block in new)]

    def _place(self, file: Path, at: int, new: bytes) -> None:
        """Make a file end with `new` from the byte `at` on."""
        start = old = b""
        if file.is_file():
            with file.open("rb") as content:
                start, old = content.read(at), content.read()
        if file.is_file() and old == new:
            return
        if start + old and new.startswith(old) and file.name.endswith(GROWING):
            with file.open("ab") as end:  # whoever follows the file goes on reading
                end.write(new[len(old) :])
            return
        with replacing(file) as whole:
            whole.write(start + new)

    def _here(self, inside: str = "") -> Iterator[str]:
        """Paths of the files that are sent."""
        folder = self.folder / inside
        if not folder.is_dir():
            return
        for entry in sorted(folder.iterdir()):
            path = f"{inside}{entry.name}"
            if entry.name.startswith(".") or path in OWN:
                continue
            if entry.is_file():
                yield path
            elif entry.is_dir() and not (entry / MANIFEST).exists():
                yield from self._here(f"{path}/")


def check_inside(path: str) -> str:
    """A relative path from the store. Raises StoreError for one that leads out of its folder."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise StoreError(f"The store names a file outside the job's folder: {path!r}. Somebody else wrote it there.")
    return path


def _key(path: str, number: int) -> str:
    return f"{path}/{number:06}"
