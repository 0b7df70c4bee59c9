"""A corpus of a trillion tokens is opened in seconds, in memory that does not grow with it. Its files are sparse."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cupola_platform.corpus.tokenizer.shard_index import DTYPE_CODES, MAGIC

FILES = 233
DOCUMENTS = 4_294_967
"""Of each file, 1,000 tokens long: 16 GiB."""
LENGTH = 4096

OPEN = """
import json, os, resource, sys, time
from pathlib import Path
import numpy as np
from cupola_trainer.config import NextTokenData
from cupola_trainer.data.pretraining.tokens import build

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

before, started = resident(), time.perf_counter()
train, heldout = build(NextTokenData(tokens=Path(sys.argv[1])), sequence_length=4096, seed=1)
first = train[0]
opened = time.perf_counter() - started
rows = [train[index] for index in range(1000)] + [train[10 ** 9 + index] for index in range(1000)]
places = [train.place(index) for index in range(100)]
spans = [(train.sources[source].stream.name, *train.sources[source].span(number)) for source, number in places]
print(json.dumps({
    "epoch": train.epoch, "heldout": heldout.epoch, "opened": opened, "memory": resident() - before,
    "files": len(os.listdir("/proc/self/fd")), "spans": spans, "zeros": all(not row.any() for row in rows),
    "written": train[int(sys.argv[2])].tolist() if len(sys.argv) > 2 else [],
}))
"""


def write_shard(prefix: Path) -> None:
    """A pair of files of this size with nothing in them but what opening reads."""
    with prefix.with_name(prefix.name + ".bin").open("wb") as tokens:
        tokens.truncate(DOCUMENTS * 4000)
    with prefix.with_name(prefix.name + ".idx").open("wb") as index:
        index.write(MAGIC + struct.pack("<QBQQ", 1, DTYPE_CODES["int32"], DOCUMENTS, DOCUMENTS + 1))
        index.seek(34 + 4 * (DOCUMENTS - 1))
        index.write(struct.pack("<i", 1000))
        index.seek(34 + 4 * DOCUMENTS + 8 * (DOCUMENTS - 1))
        index.write(struct.pack("<q", (DOCUMENTS - 1) * 4000))
        index.truncate(34 + 12 * DOCUMENTS + 8 * (DOCUMENTS + 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tokens` artifact of two sources: a trillion tokens in a billion documents, and a small one."""
    folder = tmp_path_factory.mktemp("trillion")
    (folder / "shards").mkdir()
    sources: dict[str, dict[str, Any]] = {}
    for source, files in (("web", FILES), ("code", 1)):
        sources[source] = {}
        for split, count in (("train", files), ("heldout", 1)):
            names = [f"{split}-{source}", *(f"{split}-{source}.{number:05d}" for number in range(1, count))]
            for name in names:
                write_shard(folder / "shards" / name)
            total = count * DOCUMENTS
            sources[source][split] = {"documents": total, "tokens": total * 1000, "files": names}
    (folder / "index.json").write_text(json.dumps({"vocab_size": 151_936, "sources": sources}))
    assert sources["web"]["train"]["tokens"] > 10**12
    return folder


def opened(folder: Path, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-c", OPEN, str(folder), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_trillion_tokens_are_opened_in_seconds_and_little_memory(folder: Path) -> None:
    found = opened(folder)
    assert found["epoch"] == (FILES * DOCUMENTS * 1000 - 1) // LENGTH + (DOCUMENTS * 1000 - 1) // LENGTH
    assert found["heldout"] == 2 * ((DOCUMENTS * 1000 - 1) // LENGTH)
    assert found["zeros"]
    assert found["opened"] < 5
    assert found["memory"] < 128 << 20
    assert found["files"] < 300


def test_a_row_is_where_its_span_says_in_one_of_many_files(folder: Path) -> None:
    spans = opened(folder)["spans"]
    assert len({tuple(span[:2]) for span in spans}) == 100
    row = next(row for row, (name, _, _) in enumerate(spans) if name == "train-web")
    _, first, count = spans[row]
    assert count == LENGTH + 1
    number, place = divmod(first, DOCUMENTS * 1000)
    assert place + count <= DOCUMENTS * 1000, "in one file"
    name = f"train-web.{number:05d}" if number else "train-web"
    with (folder / "shards" / f"{name}.bin").open("r+b") as tokens:
        os.pwrite(tokens.fileno(), np.arange(7, 7 + count, dtype="<i4").tobytes(), place * 4)
    assert opened(folder, row)["written"] == list(range(7, 7 + count))
