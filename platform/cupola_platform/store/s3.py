"""Artifacts in an S3 bucket, each fetched once into a local cache."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from cupola_platform.artifacts import MANIFEST, Artifact, FileEntry, Manifest
from cupola_platform.artifacts.elsewhere import ELSEWHERE, Elsewhere
from cupola_platform.artifacts.manifest import parse_manifest, write_manifest
from cupola_platform.artifacts.sealing import check_file
from cupola_platform.errors import CorruptArtifactError, NotFoundError, StoreError
from cupola_platform.store import transfer
from cupola_platform.store.local import LocalStore
from cupola_platform.store.plain import Objects
from cupola_platform.store.room import Room, hold
from cupola_platform.store.transfer import AT_ONCE, Item

_CREDENTIALS = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "ExpiredToken", "InvalidToken")
_ABSENT = ("NoSuchKey", "404", "NotFound")


class S3Store:
    """Artifacts at `s3://bucket/prefix/artifacts/<digest>/`.

    Files are uploaded first, each piece with a CRC-32 that the server checks. `manifest.json` is uploaded last, and
    only if there is none, so an artifact is never partial and never overwritten.
    """

    def __init__(
        self, url: str, *, cache: LocalStore, endpoint_url: str | None = None, region: str | None = None,
        cache_size: int | None = None, private: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
            cache_size: bytes; None for no bound.
            private: whether the cache is this process's own, so that nothing in it needs a lock.
        """
        self.bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
        self._top = f"{prefix}/" if prefix else ""
        self.prefix = f"{self._top}artifacts/"
        self.cache = cache
        self.room = Room(cache.root, cache_size)
        self._hold = (lambda folder: None) if private else hold
        self._endpoint, self._region = endpoint_url, region
        self._server = endpoint_url or "AWS"
        style: Any = {"addressing_style": "path" if endpoint_url else "auto"}
        config = Config(
            s3=style, connect_timeout=10, retries={"mode": "standard", "total_max_attempts": 4},
            max_pool_connections=2 * AT_ONCE, response_checksum_validation="when_required",  # BLAKE3 is checked
        )  # fmt: skip
        with self._refusals():
            self._s3 = boto3.Session().client("s3", endpoint_url=endpoint_url, region_name=region, config=config)

    def put(self, artifact: Artifact) -> Artifact:
        """Upload a sealed folder, then move it into the cache. An interrupted upload resumes where it stopped.

        Files that the folder says the store has already (`Elsewhere`) are copied on the server. On an error the folder
        stays where it was.

        Raises:
            CorruptArtifactError: the server has different content under that digest, or not what the folder says.
            StoreError: the server refused or cannot be reached.
        """
        with self._refusals():
            try:
                self.manifest(artifact.digest)
            except NotFoundError:
                transfer.upload(self._s3, self.bucket, self._missing(artifact))
                self._commit(artifact)
        return self._keep(artifact)

    def get(self, digest: str, *, partly: bool = False) -> Artifact:
        """The artifact in the cache, fetched and verified if it is not there yet. An interrupted fetch resumes.

        Raises:
            NotFoundError: the bucket does not have it.
            CorruptArtifactError: a fetched file does not match the manifest, or the manifest belongs to another
                artifact. Names the file.
            StoreError: the server refused or cannot be reached.
        """
        self._hold(self.cache.root / digest)
        if self._is_here(digest, partly):
            return self.cache.get(digest)
        manifest = self.manifest(digest)
        with self.room.incoming(digest, manifest.size) as incoming, self._refusals():
            if self._is_here(digest, partly):  # another process fetched it meanwhile
                return self.cache.get(digest)
            if self.cache.holds(digest):
                return self._complete(self.cache.get(digest), incoming)
            self._fetch(manifest, manifest.files, incoming)
            write_manifest(incoming, manifest)
            return self._keep(Artifact(incoming, manifest))

    def _is_here(self, digest: str, partly: bool) -> bool:
        return self.cache.holds(digest) and (partly or Elsewhere.read(self.cache.root / digest) is None)

    def _complete(self, artifact: Artifact, incoming: Path) -> Artifact:
        """Fetch the files that an artifact in the cache lacks. Readers of the others are not disturbed."""
        lacking = [file for file in artifact.manifest.files if not (artifact.path / file.path).is_file()]
        self._fetch(artifact.manifest, lacking, incoming)
        for file in lacking:
            (incoming / file.path).chmod(0o444)
            (artifact.path / file.path).parent.mkdir(parents=True, exist_ok=True)
            (incoming / file.path).rename(artifact.path / file.path)
        (artifact.path / ELSEWHERE).unlink()
        shutil.rmtree(incoming, ignore_errors=True)
        self.room.added(artifact.digest, artifact.manifest.size)
        return artifact

    def holds(self, digest: str) -> bool:
        try:
            self.manifest(digest)
        except (NotFoundError, CorruptArtifactError):
            return False
        return True

    def manifest(self, digest: str) -> Manifest:
        with self._refusals():
            try:
                reply = self._s3.get_object(Bucket=self.bucket, Key=self._key(digest, MANIFEST))
            except ClientError as error:
                if error.response["Error"]["Code"] in _ABSENT:
                    raise NotFoundError(
                        f"There is no artifact at {self.location(digest)}. `cupola artifacts` lists them."
                    ) from None
                raise
            return parse_manifest(reply["Body"].read(), f"{self.location(digest)}/{MANIFEST}", digest=digest)

    def digests(self) -> set[str]:
        return self._folders(self.prefix)

    def _folders(self, prefix: str) -> set[str]:
        with self._refusals():
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")
            return {
                folder["Prefix"].removeprefix(prefix).rstrip("/")
                for page in pages
                for folder in page.get("CommonPrefixes", [])
            }

    def location(self, digest: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{digest}"

    def section(self, name: str, cache: Path) -> "S3Store":
        url = f"s3://{self.bucket}/{self._top}{name}"
        return S3Store(
            url, cache=LocalStore(cache), endpoint_url=self._endpoint, region=self._region, private=True
        )  # fmt: skip

    def objects(self, name: str) -> Objects:
        """The plain objects under a name beside the artifacts; all objects if it is empty."""
        return Objects(self._s3, self.bucket, f"{self._top}{name}/" if name else self._top, self._refusals)

    def sections(self, kind: str) -> set[str]:
        return self._folders(f"{self._top}{kind}/")

    def withdraw(self, digest: str) -> None:
        """Remove the manifest, then the rest. Raises StoreError if the server refuses."""
        with self._refusals():
            self._s3.delete_object(Bucket=self.bucket, Key=self._key(digest, MANIFEST))
            self._delete(self._key(digest, ""))

    def sweep(self) -> None:
        """Remove from the cache what the bucket no longer has, unless a process uses it."""
        for digest in self.cache.digests():
            if not self.holds(digest):
                self.room.remove(digest)
        self.cache.sweep()

    def remove(self, digest: str) -> None:
        self.withdraw(digest)
        self.sweep()

    def clear(self) -> None:
        for digest in self.digests():
            self.remove(digest)
        shutil.rmtree(self.cache.root, ignore_errors=True)

    def _keep(self, artifact: Artifact) -> Artifact:
        self._hold(self.cache.root / artifact.digest)
        if Elsewhere.read(artifact.path):
            Elsewhere(at=f"artifacts/{artifact.digest}").write(artifact.path)
        kept = self.cache.put(artifact)
        here = [file.size for file in kept.manifest.files if (kept.path / file.path).is_file()]
        self.room.added(kept.digest, sum(here))
        return kept

    def _delete(self, prefix: str) -> None:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        for page in pages:
            keys: list[Any] = [{"Key": item["Key"]} for item in page.get("Contents", [])]
            if keys:
                self._s3.delete_objects(Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True})

    def _key(self, digest: str, path: str) -> str:
        return f"{self.prefix}{digest}/{path}"

    def _missing(self, artifact: Artifact) -> list[Item]:
        """The files that an interrupted upload has not left behind."""
        there = Elsewhere.read(artifact.path)
        sent = self.objects(f"artifacts/{artifact.digest}").sizes()
        sources = self.objects(there.at).sizes() if there else {}
        missing = []
        for file in artifact.manifest.files:
            path, source = artifact.path / file.path, ""
            if there and not path.is_file():
                source = f"{self._top}{there.at}/{file.path}"
            item = Item(path, self._key(artifact.digest, file.path), file.size, file.blake3, source)
            if _size_of(sent, file.path) == file.size and self._uploaded(item):
                continue
            if source and (size := _size_of(sources, file.path)) != file.size:
                raise CorruptArtifactError(
                    f"s3://{self.bucket}/{source} has {'no' if size is None else size} bytes, the manifest says "
                    f"{file.size}. Make artifact {artifact.id} again."
                )
            missing.append(item)
        return missing

    def _uploaded(self, item: Item) -> bool:
        metadata = self._s3.head_object(Bucket=self.bucket, Key=item.key)["Metadata"]
        return bool(metadata.get("blake3") == item.blake3)

    def _commit(self, artifact: Artifact) -> None:
        body = (artifact.path / MANIFEST).read_bytes()
        try:
            self._s3.put_object(
                Bucket=self.bucket, Key=self._key(artifact.digest, MANIFEST), Body=body,
                ChecksumAlgorithm="CRC32", ContentType="application/json", IfNoneMatch="*",
            )  # fmt: skip
        except ClientError as error:
            if error.response["Error"]["Code"] not in (
                "PreconditionFailed",
                "412",
            ):  # another machine was first, with the same content
                raise

    def _fetch(self, manifest: Manifest, files: Sequence[FileEntry], incoming: Path) -> None:
        """Download files of a manifest, each checked once; keep what an interrupted fetch has left behind."""
        shutil.rmtree(parts := incoming.with_suffix(".parts"), ignore_errors=True)
        parts.mkdir(parents=True)
        items, targets = [], {}
        for number, file in enumerate(files):
            if not _is_there(incoming / file.path, file):
                items.append(Item(parts / str(number), self._key(manifest.digest, file.path), file.size, file.blake3))
                targets[items[-1].path] = file

        def check(item: Item) -> None:
            file = targets[item.path]
            try:
                check_file(item.path, file)
            except CorruptArtifactError as error:
                raise CorruptArtifactError(
                    f"{self.location(manifest.digest)}/{file.path} was changed on the server: {error}"
                ) from None
            (incoming / file.path).parent.mkdir(parents=True, exist_ok=True)
            item.path.rename(incoming / file.path)

        try:
            transfer.download(self._s3, self.bucket, items, check)
        finally:
            shutil.rmtree(parts, ignore_errors=True)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        where = f"s3://{self.bucket} on {self._server}"
        try:
            yield
        except NoCredentialsError:
            raise StoreError(
                f"No credentials for {where}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
            ) from None
        except ClientError as error:
            raise _refusal(error, where) from None
        except (BotoCoreError, Boto3Error) as error:
            raise StoreError(f"{where} cannot be reached: {error} Check s3_endpoint_url and the network.") from None


def _refusal(error: ClientError, where: str) -> StoreError:
    code = error.response["Error"]["Code"]
    if code in _CREDENTIALS:
        return StoreError(f"{where} refused the credentials ({code}). Check AWS_ACCESS_KEY_ID and its secret.")
    if code == "NoSuchBucket":
        return StoreError(f"{where} does not exist. Create the bucket, or correct store_url.")
    return StoreError(f"{where} refused: {error}")


def _is_there(path: Path, file: FileEntry) -> bool:
    try:
        check_file(path, file)
    except (FileNotFoundError, CorruptArtifactError):
        return False
    return True


def _size_of(objects: Mapping[str, tuple[int, str]], name: str) -> int | None:
    """Bytes of one of `Objects.sizes`; None if it is not there."""
    return objects[name][0] if name in objects else None
