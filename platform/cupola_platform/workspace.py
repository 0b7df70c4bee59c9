"""The workspace: the settings, store and registry that a stage works with."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola_platform import json_lines
from cupola_platform.artifacts import MANIFEST, Artifact, read, seal, verify
from cupola_platform.errors import CorruptArtifactError, NotFoundError
from cupola_platform.registry import PATIENCE, Registry
from cupola_platform.settings import Settings, load_settings
from cupola_platform.store import Store, open_store

FINGERPRINTED = False  # finds artifacts

SHORTEST_PREFIX = 4
SOURCES = "sources.jsonl"
_ID = re.compile(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}")


@dataclass(frozen=True)
class SourceFile:
    """One file that went into a `tokens` artifact."""

    source: str
    path: str
    bytes: int
    blake3: str


@dataclass(frozen=True)
class SourceSummary:
    """All files of one source that went into a `tokens` artifact."""

    name: str
    files: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class LineageNode:
    """An artifact and what it was made from."""

    digest: str
    kind: str
    """`unknown` if the artifact is not in this registry."""
    stage: str
    metrics: dict[str, float]
    sources: tuple[SourceSummary, ...] = ()
    """Where the text of a `tokens` artifact came from."""
    parents: tuple["LineageNode", ...] = ()

    @property
    def id(self) -> str:
        """The first 12 characters of the digest."""
        return self.digest[:12]


@dataclass(frozen=True)
class Workspace:
    """An open workspace: all state of a person or a team."""

    settings: Settings
    store: Store
    registry: Registry

    @staticmethod
    def open(root: Path | None = None, patience: float = PATIENCE) -> "Workspace":
        """Open the workspace given by the settings, or the one at `root`. If the registry's server does not respond,
        retry for `patience` seconds.

        Raises:
            ConfigError: a setting is invalid.
            StoreError, RegistryError: the store or registry cannot be reached.
        """
        settings = load_settings(root)
        registry = Registry(settings.registry, patience)  # first: it refuses a workspace of another version
        return Workspace(settings, open_store(settings), registry)

    @property
    def root(self) -> Path:
        return self.settings.home

    def folder(self, name: str) -> Path:
        """A folder of the workspace (`logs`, `pids`, `spool`, ...), created if missing."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def work_folder(self, fingerprint: str) -> Path:
        """The folder of a stage in progress, from which it resumes when started again."""
        return self.folder(f"work/{fingerprint}")

    def publish(
        self, folder: Path, *, kind: str, parents: Sequence[Artifact | str] = (), stage: str = "", recipe: str = "",
        fingerprint: str = "", config: Mapping[str, Any] | None = None, metrics: Mapping[str, float] | None = None,
        run_id: str | None = None, known: Mapping[str, tuple[int, str]] | None = None,
    ) -> Artifact:  # fmt: skip
        """Seal a folder, move it into the store, and register it with its lineage.

        Content that was published before keeps its first manifest. If interrupted, `adopt` completes it.

        Args:
            parents: artifacts, or digests of artifacts that are yet to be published.
            known: see `artifacts.seal`.

        Raises:
            CorruptArtifactError: the folder contains something other than plain files.
            StoreError, RegistryError: the store or registry refused or cannot be reached.
        """
        digests = [parent if isinstance(parent, str) else parent.digest for parent in parents]
        sealed = seal(
            folder, kind=kind, parents=digests, stage=stage, recipe=recipe, fingerprint=fingerprint, config=config,
            metrics=metrics, known=known,
        )  # fmt: skip
        for parent in parents:
            if isinstance(parent, Artifact):
                self.registry.add_artifact(parent.manifest)
        self.registry.retention.claim(sealed.digest)
        stored = self.store.put(sealed)
        self.registry.add_artifact(sealed.manifest, run_id)
        return stored

    def adopt(self) -> int:
        """Register artifacts that are in the store but not in the registry (a lost registry, another machine's work).

        Returns:
            How many artifacts were new.
        """
        if self.registry.read_only:
            return 0
        adopted = 0
        for digest in sorted(self.store.digests() - self.registry.digests()):
            try:
                self.registry.add_artifact(self.store.manifest(digest))
            except (NotFoundError, CorruptArtifactError):
                continue  # an upload in progress, or damaged
            adopted += 1
        return adopted

    def find(self, fingerprint: str, *, partly: bool = False) -> Artifact | None:
        """The result of a stage with this fingerprint, if it is registered, stored and verifies. `partly`: see
        `Store.get`."""
        digest = self.registry.made_by(fingerprint)
        if digest is None and self.adopt():
            digest = self.registry.made_by(fingerprint)
        if digest is None or not self.use(digest):
            return None
        try:
            return verify(self.store.get(digest, partly=partly).path)
        except (NotFoundError, CorruptArtifactError):
            return None

    def resolve(self, reference: str) -> Artifact:
        """The artifact named by an alias, an id or its first characters, or a folder. A name that looks like an id is
        one.

        Raises:
            NotFoundError: no match or several; lists close names.
            CorruptArtifactError: the folder is not a finished artifact.
            StoreError: the store refused or cannot be reached.
        """
        alias = self.registry.alias(reference)
        if alias is not None:
            self.use(alias.digest)
            return self.store.get(alias.digest)
        folder, spelled_like_an_id = Path(reference), _ID.fullmatch(reference)
        if ("/" in reference and folder.is_dir()) or ((folder / MANIFEST).is_file() and not spelled_like_an_id):
            return read(folder.absolute())
        digest = self._digest(reference)
        self.use(digest)
        return self.store.get(digest)

    def use(self, digest: str) -> bool:
        """Keep `cupola gc` from removing an artifact for now. False if it is not registered, or no longer."""
        return self.registry.read_only or self.registry.retention.use(digest)

    def lineage(self, artifact: Artifact) -> LineageNode:
        """The tree of an artifact's ancestors, down to the sources of its text."""
        return self._node(artifact.digest, {artifact.digest: artifact})

    def source_files(self, artifact: Artifact) -> Iterator[SourceFile]:
        """Every source file of a `tokens` artifact, one at a time; none for other kinds."""
        path = artifact.path / SOURCES
        if path.is_file():
            for row in json_lines.read(path):
                yield SourceFile(row["source"], row["path"], row["bytes"], row["blake3"])

    def _digest(self, prefix: str) -> str:
        if len(prefix) < SHORTEST_PREFIX:
            raise NotFoundError(
                f"{prefix!r} is too short for an id. Give at least {SHORTEST_PREFIX} characters, or an alias."
            )
        matches = self.registry.starting_with(prefix)
        if not matches and self.adopt():
            matches = self.registry.starting_with(prefix)
        if len(matches) == 1:
            return matches[0].digest
        if matches:
            listed = ", ".join(f"{row.id} ({row.kind})" for row in matches)
            raise NotFoundError(f"{prefix!r} could be any of {listed}. Give more characters.")
        near = self._near(prefix)
        hint = f"Did you mean {', '.join(near)}?" if near else "`cupola artifacts` lists them."
        if (Path(prefix) / MANIFEST).is_file():
            hint = f"The folder of that name is ./{prefix}."
        raise NotFoundError(f"No artifact, alias or folder named {prefix!r}. {hint}")

    def _near(self, reference: str) -> list[str]:
        names = [alias.name for alias in self.registry.aliases()] + [row.id for row in self.registry.artifacts()]
        return difflib.get_close_matches(reference[:12], names, n=3, cutoff=0.6)

    def _node(self, digest: str, known: Mapping[str, Artifact]) -> LineageNode:
        row = self.registry.artifact(digest)
        if row is None and digest not in known:
            return LineageNode(digest=digest, kind="unknown", stage="", metrics={})
        manifest = known[digest].manifest if row is None else row
        return LineageNode(
            digest=digest,
            kind=manifest.kind,
            stage=manifest.stage,
            metrics=manifest.metrics,
            sources=self._sources(known.get(digest), digest) if manifest.kind == "tokens" else (),
            parents=tuple(self._node(parent, known) for parent in manifest.parents if parent != digest),
        )

    def _sources(self, artifact: Artifact | None, digest: str) -> tuple[SourceSummary, ...]:
        counts: dict[str, tuple[int, int]] = {}
        try:
            for file in self.source_files(artifact or self.store.get(digest)):
                files, size = counts.get(file.source, (0, 0))
                counts[file.source] = (files + 1, size + file.bytes)
        except (NotFoundError, CorruptArtifactError):
            return ()  # registered, but its files are no longer in the store
        return tuple(SourceSummary(name, files, size) for name, (files, size) in sorted(counts.items()))
