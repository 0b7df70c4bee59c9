"""The S3 store against boto3's transfer manager, on a SeaweedFS server that this script starts.

    .venv/bin/python benchmarks/store.py [--small 1000] [--small-kb 64] [--large-gb 5] [--rounds 3] [--folder DIR]

What is moved is one artifact: `--small` files of `--small-kb` kB each, or one file of `--large-gb` GB. boto3 moves the
same files through one transfer manager with boto3's own settings. The methods take turns, in rounds; no round begins
that would end after `--minutes`. The store also checks every file's BLAKE3 after a download and writes a manifest; boto3
does neither. Every byte is random. On the disk are at most three copies of a file, all removed at the end. Processor
seconds tell more than megabytes per second if other work keeps the machine busy.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cupola_platform.artifacts import Artifact, seal
from cupola_platform.store import LocalStore
from cupola_platform.store.s3 import S3Store

BUCKET = "benchmark"
COPIES = 3
"""Of the files of a case on the disk at a time: the source, the server's, and the download."""


@dataclass(frozen=True)
class Taken:
    """What an upload or a download took, in seconds."""

    wall: float
    client: float
    """Of processor time."""
    server: float


@dataclass(frozen=True)
class Server:
    url: str
    process: psutil.Process

    def taken(self, work: Callable[[], object]) -> Taken:
        os.sync()
        before = (time.perf_counter(), time.process_time(), sum(self.process.cpu_times()[:2]))
        work()
        after = (time.perf_counter(), time.process_time(), sum(self.process.cpu_times()[:2]))
        return Taken(*(end - start for start, end in zip(before, after, strict=True)))


@contextmanager
def seaweedfs(folder: Path) -> Iterator[Server]:
    """A running server."""
    identity = {"name": "all", "credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="us-east-1")
    names = [f"{name}{grpc}" for name in ("master", "volume", "filer", "s3") for grpc in (".port", ".port.grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [
        str(Path(sys.executable).with_name("weed")), "server", f"-dir={folder}", "-ip=127.0.0.1", "-filer", "-s3",
        f"-s3.config={folder / 's3.json'}", "-master.volumeSizeLimitMB=1024", "-volume.max=100",
        "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    url = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        wait_for(url)
        yield Server(url, psutil.Process(server.pid))
    finally:
        server.kill()
        server.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(url: str) -> None:
    until = time.monotonic() + 90
    while True:
        try:
            with emptied(url) as s3:
                s3.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
            return
        except (ClientError, BotoCoreError):
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def client(url: str) -> Any:
    style: Any = {"addressing_style": "path"}
    return boto3.Session().client("s3", endpoint_url=url, config=Config(s3=style))


@contextmanager
def emptied(url: str) -> Iterator[Any]:
    """A client and a new bucket, which is removed with all that it holds: single objects would stay on the disk until
    the server compacts."""
    s3 = client(url)
    with suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket=BUCKET)
    yield s3
    s3.delete_bucket(Bucket=BUCKET)


def make(folder: Path, files: int, size: int) -> None:
    """Write files of random bytes."""
    folder.mkdir()
    for number in range(files):
        with (folder / f"{number:06d}.bin").open("wb") as file:
            for start in range(0, size, 1 << 24):
                file.write(os.urandom(min(1 << 24, size - start)))


def ours(server: Server, sealed: Artifact, scratch: Path) -> tuple[Taken, Taken]:
    """An upload and a download by the store."""
    shutil.copytree(sealed.path, scratch / "put", copy_function=os.link)  # the store takes the folder over
    here = S3Store(f"s3://{BUCKET}", cache=LocalStore(scratch / "here"), endpoint_url=server.url)
    there = S3Store(f"s3://{BUCKET}", cache=LocalStore(scratch / "there"), endpoint_url=server.url)
    up = server.taken(lambda: here.put(Artifact(scratch / "put", sealed.manifest)))
    return up, server.taken(lambda: there.get(sealed.digest))


def boto(server: Server, sealed: Artifact, scratch: Path) -> tuple[Taken, Taken]:
    """The same by boto3's transfer manager."""
    s3, files = client(server.url), [file.path for file in sealed.manifest.files]
    config = TransferConfig(preferred_transfer_client="classic")

    def each(begin: Callable[[Any, str], Any]) -> None:
        with create_transfer_manager(s3, config) as manager:
            for future in [begin(manager, file) for file in files]:
                future.result()

    up = server.taken(lambda: each(lambda to, file: to.upload(str(sealed.path / file), BUCKET, file)))
    down = server.taken(lambda: each(lambda of, file: of.download(BUCKET, file, str(scratch / file))))
    return up, down


METHODS = {"store": ours, "boto3": boto}


def measure(
    server: Server, sealed: Artifact, rounds: int, until: float, folder: Path
) -> dict[str, list[tuple[Taken, Taken]]]:
    found: dict[str, list[tuple[Taken, Taken]]] = {name: [] for name in METHODS}
    longest = 0.0
    for number in range(rounds):
        began = time.monotonic()
        if number and began + longest > until:
            break
        for name in [*METHODS] if number % 2 == 0 else reversed(METHODS):
            with tempfile.TemporaryDirectory(dir=folder) as scratch, emptied(server.url):
                found[name].append(METHODS[name](server, sealed, Path(scratch)))
        longest = max(longest, time.monotonic() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=1000, help="files")
    parser.add_argument("--small-kb", type=int, default=64, help="kB each")
    parser.add_argument("--large-gb", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the server keeps its files, and the client its"
    )
    parser.add_argument("--minutes", type=float, default=14.0, help="limit for all rounds together")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    cases = {
        f"{options.small:,} files of {options.small_kb} kB": (options.small, options.small_kb * 1000),
        f"one file of {options.large_gb:g} GB": (1, int(options.large_gb * 1e9)),
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as top:
        needed = COPIES * max(files * size for files, size in cases.values())
        if shutil.disk_usage(top).free < needed:
            sys.exit(f"{top} needs {needed / 1e9:.1f} GB free. Set --folder, or a smaller --large-gb.")
        (Path(top) / "server").mkdir()
        with seaweedfs(Path(top) / "server") as server:
            for number, (case, (files, size)) in enumerate(cases.items()):
                if not files or not size:
                    continue
                make(source := Path(top) / f"files{number}", files, size)
                found = measure(server, seal(source, kind="benchmark"), options.rounds, until, Path(top))
                for name, rounds in found.items():
                    report(case, name, files * size, rounds)
                shutil.rmtree(source)


def report(case: str, name: str, size: int, rounds: list[tuple[Taken, Taken]]) -> None:
    for what, taken in zip(("upload", "download"), zip(*rounds, strict=True), strict=True):
        rates = sorted(size / 1e6 / each.wall for each in taken)
        print(
            f"{case}  {what:<8}  {name:<5}  median {statistics.median(rates):6.1f} MB/s "
            f"({rates[0]:.1f} to {rates[-1]:.1f}, {len(rates)} rounds); processor seconds: client "
            f"{statistics.median(each.client for each in taken):.2f}, server "
            f"{statistics.median(each.server for each in taken):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
