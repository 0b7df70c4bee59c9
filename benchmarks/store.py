"""The S3 store against boto3's transfer manager, on a SeaweedFS server that this script starts.

    .venv/bin/python benchmarks/store.py [--small 1000] [--small-kb 64] [--large-gb 5] [--rounds 3] [--folder DIR]

What is moved is one artifact: `--small` files of `--small-kb` kB each, or one file of `--large-gb` GB. boto3 moves the
same files with `upload_file` and `download_file` from a thread pool of the same size as the store's, with its own
settings; with awscrt installed a third contender is its CRT client. Methods take turns, in rounds. The store also
checks every file's BLAKE3 after a download and writes a manifest; boto3 does neither. Every byte is random.
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
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cupola_platform.artifacts import seal
from cupola_platform.store import LocalStore
from cupola_platform.store.s3 import S3Store
from cupola_platform.store.transfer import AT_ONCE

BUCKET = "benchmark"


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """A running server. Yields its URL."""
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
        yield url
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
            with suppress(ClientError):
                client(url).create_bucket(Bucket=BUCKET)
            client(url).put_object(Bucket=BUCKET, Key="ready", Body=b"1")
            return
        except (ClientError, BotoCoreError):
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def client(url: str) -> Any:
    style: Any = {"addressing_style": "path"}
    config = Config(s3=style, max_pool_connections=4 * AT_ONCE)
    return boto3.Session().client("s3", endpoint_url=url, config=config)


def make(folder: Path, files: int, size: int) -> None:
    """Write files of random bytes."""
    folder.mkdir()
    for number in range(files):
        with (folder / f"{number:06d}.bin").open("wb") as file:
            for start in range(0, size, 1 << 24):
                file.write(os.urandom(min(1 << 24, size - start)))


def seconds(work: Callable[[], object]) -> float:
    os.sync()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ours(url: str, source: Path, scratch: Path) -> tuple[float, float]:
    """Seconds of an upload and a download of the store."""
    prefix = uuid.uuid4().hex
    sealed = seal(source, kind="benchmark")
    shutil.copytree(source, scratch / "put", copy_function=os.link)  # the store takes the folder over
    here = S3Store(f"s3://{BUCKET}/{prefix}", cache=LocalStore(scratch / "here"), endpoint_url=url)
    there = S3Store(f"s3://{BUCKET}/{prefix}", cache=LocalStore(scratch / "there"), endpoint_url=url)
    up = seconds(lambda: here.put(type(sealed)(scratch / "put", sealed.manifest)))
    down = seconds(lambda: there.get(sealed.digest))
    there.withdraw(sealed.digest)
    return up, down


def boto(url: str, source: Path, scratch: Path, *, crt: bool) -> tuple[float, float]:
    """The same of boto3's transfer manager, or of its CRT client."""
    prefix, s3 = uuid.uuid4().hex, client(url)
    config = TransferConfig(preferred_transfer_client="crt" if crt else "classic")
    files = sorted(source.glob("*.bin"))
    target = scratch / "there"
    target.mkdir()

    def each(work: Callable[[Path], object]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(work, files))

    up = seconds(lambda: each(lambda file: s3.upload_file(str(file), BUCKET, f"{prefix}/{file.name}", Config=config)))
    down = seconds(
        lambda: each(
            lambda file: s3.download_file(BUCKET, f"{prefix}/{file.name}", str(target / file.name), Config=config)
        )
    )
    for file in files:
        s3.delete_object(Bucket=BUCKET, Key=f"{prefix}/{file.name}")
    return up, down


def measure(url: str, source: Path, rounds: int, folder: Path) -> dict[str, list[tuple[float, float]]]:
    methods: dict[str, Callable[[str, Path, Path], tuple[float, float]]] = {
        "store": ours,
        "boto3": lambda *given: boto(*given, crt=False),
    }
    if find_spec("awscrt"):
        methods["boto3, CRT"] = lambda *given: boto(*given, crt=True)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for number in range(rounds):
        order = list(methods) if number % 2 == 0 else list(reversed(methods))
        for name in order:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                found[name].append(methods[name](url, source, Path(scratch)))
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
    options = parser.parse_args()
    cases = {
        f"{options.small:,} files of {options.small_kb} kB": (options.small, options.small_kb * 1000),
        f"one file of {options.large_gb:g} GB": (1, int(options.large_gb * 1e9)),
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as top:
        (Path(top) / "server").mkdir()
        with seaweedfs(Path(top) / "server") as url:
            for number, (case, (files, size)) in enumerate(cases.items()):
                if not files or not size:
                    continue
                make(source := Path(top) / f"files{number}", files, size)
                for name, times in measure(url, source, options.rounds, Path(top)).items():
                    report(case, name, files * size, times)
                shutil.rmtree(source)


def report(case: str, name: str, size: int, times: list[tuple[float, float]]) -> None:
    for what, taken in zip(("upload", "download"), zip(*times, strict=True), strict=True):
        rates = sorted(size / 1e6 / each for each in taken)
        middle = statistics.median(rates)
        print(
            f"{case}  {what:<8}  {name:<10}  median {middle:7.1f} MB/s ({rates[0]:.1f} to {rates[-1]:.1f}), "
            f"{statistics.median(taken):6.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
