"""Digests of files and sources, and the fingerprint of a stage."""

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from blake3 import blake3

from cupola_platform.errors import ConfigError

_MAPPED_FROM = 1 << 20
"""Files of at least this many bytes are memory-mapped and hashed on all cores; for smaller ones threads cost more than
they save."""


def digest_bytes(data: bytes | memoryview) -> str:
    """BLAKE3 of `data`, in hex (64 characters)."""
    return str(blake3(data).hexdigest())


def digest_file(path: Path) -> str:
    """BLAKE3 of a file, in hex (64 characters). Large files are hashed on all cores."""
    if path.stat().st_size < _MAPPED_FROM:
        return digest_bytes(path.read_bytes())
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(path)
    return str(hasher.hexdigest())


def digest_files(digests: Iterable[tuple[str, str]]) -> str:
    """BLAKE3 over the sorted lines `path NUL file-digest`: the name of a folder's content."""
    lines = sorted(f"{path}\0{digest}\n" for path, digest in digests)
    return digest_bytes("".join(lines).encode())


def canonical_json(value: Any) -> str:
    """The canonical form of a JSON value: sorted keys, no spaces, UTF-8.

    Raises:
        ConfigError: the value contains something that JSON cannot represent (NaN, a set, an object).
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"A config must be plain JSON: {error}. Use only numbers, strings, lists and mappings."
        ) from None


def fingerprint(config: Mapping[str, Any], parents: Sequence[str], code: str) -> str:
    """Identifies a stage's result before it exists: BLAKE3 over its config, its parents' digests (in order) and its
    code.

    Raises:
        ConfigError: the config is not plain JSON.
    """
    return digest_bytes(canonical_json({"config": config, "parents": list(parents), "code": code}).encode())


@cache
def code_version(*packages: str) -> str:
    """BLAKE3 over the Python sources of packages or modules (dotted names), found without importing them.

    Raises:
        ConfigError: no such package or module.
    """
    return digest_files(
        (f"{package}/{source.relative_to(root).as_posix()}", digest_file(source))
        for package in packages
        for root, source in _sources(package)
    )


def _sources(package: str) -> list[tuple[Path, Path]]:
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top)  # the top only: finding a submodule would import its parents
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"There is no package {package!r} to compute a code version for. Install it, or correct the name."
        )
    folder = Path(spec.origin).parent.joinpath(*rest)
    module = folder.with_suffix(".py")
    if rest and module.is_file():
        return [(module.parent, module)]
    sources = [(folder, source) for source in folder.rglob("*.py")]
    if not sources:
        raise ConfigError(f"{package!r} has no Python sources to compute a code version from. Correct the name.")
    return sources
