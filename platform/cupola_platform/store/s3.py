"""Artifacts in an S3 bucket, each fetched once into a local cache."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from cupola_platform.artifacts import MANIFEST, Artifact, FileEntry, Manifest, verify
from cupola_platform.artifacts.manifest import parse_manifest
from cupola_platform.artifacts.sealing import check_file
from cupola_platform.errors import CorruptArtifactError, NotFoundError, StoreError
from cupola_platform.store.local import LocalStore
from cupola_platform.store.plain import Objects

_FILES_AT_ONCE = 4
_PARTS = TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4)
_CREDENTIALS = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "ExpiredToken", "InvalidToken")
_ABSENT = ("NoSuchKey", "404", "NotFound")


class S3Store:
    """Artifacts at `s3://bucket/prefix/artifacts/<digest>/`.

    Files are uploaded first, each with a SHA-256 that the server checks. `manifest.json` is uploaded last, and only if
    there is none, so an artifact is never partial and never overwritten.
    """

    def __init__(
        self, url: str, *, cache: LocalStore, endpoint_url: str | None = None, region: str | None = None
    ) -> None:
        self.bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
        self._top = f"{prefix}/" if prefix else ""
        self.prefix = f"{self._top}artifacts/"
        self.cache = cache
        self._endpoint, self._region = endpoint_url, region
        self._server = endpoint_url or "AWS"
        style: Any = {"addressing_style": "path" if endpoint_url else "auto"}
        config = Config(
            s3=style, connect_timeout=10, retries={"mode": "standard", "total_max_attempts": 4}, max_pool_connections=32
        )
        with self._refusals():
            self._s3 = boto3.Session().client("s3", endpoint_url=endpoint_url, region_name=region, config=config)

    def put(self, artifact: Artifact) -> Artifact:
        """Upload a sealed folder, then move it into the cache. An interrupted upload resumes where it stopped.

        On an error the folder stays where it was.

        Raises:
            CorruptArtifactError: the server has different content under that digest.
            StoreError: the server refused or cannot be reached.
        """
        with self._refusals():
            try:
                self.manifest(artifact.digest)
            except NotFoundError:
                self._for_each(artifact.manifest, lambda file: self._upload(artifact, file))
                self._commit(artifact)
        return self.cache.put(artifact)

    def get(self, digest: str) -> Artifact:
        """The artifact in the cache, fetched and verified if it is not there yet. An interrupted fetch resumes.

        Raises:
            NotFoundError: the bucket does not have it.
            CorruptArtifactError: a fetched file does not match the manifest, or the manifest belongs to another
                artifact. Names the file.
            StoreError: the server refused or cannot be reached.
        """
        if self.cache.holds(digest):
            return self.cache.get(digest)
        manifest = self.manifest(digest)
        incoming = self.cache.root / f".incoming-{digest}"
        with _locked(incoming.with_suffix(".lock")), self._refusals():
            if self.cache.holds(digest):  # another process fetched it meanwhile
                return self.cache.get(digest)
            incoming.mkdir(exist_ok=True)
            self._for_each(manifest, lambda file: self._download(digest, file, incoming / file.path))
            self._s3.download_file(self.bucket, self._key(digest, MANIFEST), str(incoming / MANIFEST))
            try:
                artifact = verify(incoming, digest=digest)
            except CorruptArtifactError:
                shutil.rmtree(incoming)
                raise
            return self.cache.put(artifact)

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
        with self._refusals():
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix, Delimiter="/"
            )
            return {
                folder["Prefix"].removeprefix(self.prefix).rstrip("/")
                for page in pages
                for folder in page.get("CommonPrefixes", [])
            }

    def location(self, digest: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{digest}"

    def section(self, name: str, cache: Path) -> "S3Store":
        url = f"s3://{self.bucket}/{self._top}{name}"
        return S3Store(url, cache=LocalStore(cache), endpoint_url=self._endpoint, region=self._region)

    def objects(self, name: str) -> Objects:
        """The plain objects under a name beside the artifacts; all objects if it is empty."""
        return Objects(self._s3, self.bucket, f"{self._top}{name}/" if name else self._top, self._refusals)

    def remove(self, digest: str) -> None:
        """Remove the manifest, then the rest. Raises StoreError if the server refuses."""
        with self._refusals():
            self._s3.delete_object(Bucket=self.bucket, Key=self._key(digest, MANIFEST))
            self._delete(self._key(digest, ""))

    def clear(self) -> None:
        for digest in self.digests():
            self.remove(digest)
        shutil.rmtree(self.cache.root, ignore_errors=True)

    def _delete(self, prefix: str) -> None:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        for page in pages:
            keys: list[Any] = [{"Key": item["Key"]} for item in page.get("Contents", [])]
            if keys:
                self._s3.delete_objects(Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True})

    def _key(self, digest: str, path: str) -> str:
        return f"{self.prefix}{digest}/{path}"

    def _for_each(self, manifest: Manifest, work: Callable[[FileEntry], None]) -> None:
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            try:
                for _ in pool.map(work, manifest.files):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _upload(self, artifact: Artifact, file: FileEntry) -> None:
        key = self._key(artifact.digest, file.path)
        if self._uploaded(key, file):
            return
        arguments = {"ChecksumAlgorithm": "SHA256", "Metadata": {"blake3": file.blake3}}
        self._s3.upload_file(str(artifact.path / file.path), self.bucket, key, ExtraArgs=arguments, Config=_PARTS)

    def _uploaded(self, key: str, file: FileEntry) -> bool:
        try:
            head = self._s3.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] in _ABSENT:
                return False
            raise
        return head["ContentLength"] == file.size and head["Metadata"].get("blake3") == file.blake3

    def _commit(self, artifact: Artifact) -> None:
        body = (artifact.path / MANIFEST).read_bytes()
        try:
            self._s3.put_object(
                Bucket=self.bucket, Key=self._key(artifact.digest, MANIFEST), Body=body,
                ChecksumAlgorithm="SHA256", ContentType="application/json", IfNoneMatch="*",
            )  # fmt: skip
        except ClientError as error:
            if error.response["Error"]["Code"] not in (
                "PreconditionFailed",
                "412",
            ):  # another machine was first, with the same content
                raise

    def _download(self, digest: str, file: FileEntry, target: Path) -> None:
        if target.is_file():
            try:
                return check_file(target, file)
            except CorruptArtifactError:
                target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        self._s3.download_file(self.bucket, self._key(digest, file.path), str(target), Config=_PARTS)
        try:
            check_file(target, file)
        except CorruptArtifactError as error:
            target.unlink()
            raise CorruptArtifactError(
                f"{self.location(digest)}/{file.path} was changed on the server: {error}"
            ) from None

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
        except S3UploadFailedError as error:
            raise _refusal(error.__context__ or error, where) from None
        except BotoCoreError as error:
            raise StoreError(f"{where} cannot be reached: {error} Check s3_endpoint_url and the network.") from None


def _refusal(error: BaseException, where: str) -> StoreError:
    code = error.response["Error"]["Code"] if isinstance(error, ClientError) else ""
    if code in _CREDENTIALS:
        return StoreError(f"{where} refused the credentials ({code}). Check AWS_ACCESS_KEY_ID and its secret.")
    if code == "NoSuchBucket":
        return StoreError(f"{where} does not exist. Create the bucket, or correct store_url.")
    return StoreError(f"{where} refused: {error}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
