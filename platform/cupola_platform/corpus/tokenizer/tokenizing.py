"""From documents to tokens, as datatrove pipeline steps: the tokenizer, each task's shards, and the joined shards."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from datatrove.pipeline.base import PipelineStep
from pyarrow import compute, parquet
from tokenizers import Tokenizer

from cupola_platform.artifacts.blocks import write_blocks
from cupola_platform.corpus.config import PrepareConfig
from cupola_platform.corpus.core.chat_documents import without_control_tokens
from cupola_platform.corpus.core.document_files import I64, first_indices, read_array, read_documents, save_array
from cupola_platform.corpus.core.documents import Counts, Document
from cupola_platform.corpus.core.heldout import F64, Extremes, Sample, draws
from cupola_platform.corpus.core.qwen_tokenizer import END_OF_TEXT
from cupola_platform.corpus.core.tasks import chunked, write
from cupola_platform.corpus.deduplication.duplicates import pairs_between
from cupola_platform.corpus.tokenizer.encoding import encoder_of
from cupola_platform.corpus.tokenizer.shards import ShardWriter, token_dtype
from cupola_platform.corpus.tokenizer.vocabulary import make_tokenizer

SPLITS = ("train", "heldout")

_SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in ("id", "source", "path", "licence", "language", "split")]
    + [(name, pyarrow.int64()) for name in ("begin", "end", "bytes", "tokens", "document")]
    + [("bits_per_byte", pyarrow.float64())]
    + [(name, pyarrow.string()) for name in ("digest", "text")]
)


@dataclass(slots=True)
class Written:
    """What one task, or all tasks, wrote."""

    splits: dict[str, dict[str, Counts]] = field(default_factory=dict)
    """By source and split."""

    languages_of_sources: dict[str, dict[str, Counts]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    """Documents by length in tokens, in powers of two."""
    files: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """The joined shards by source and split, see `shard_names`; a task has none."""

    @property
    def languages(self) -> dict[str, Counts]:
        """Counts by language over all sources."""
        totals: dict[str, Counts] = {}
        for languages in self.languages_of_sources.values():
            for language, counts in languages.items():
                _grow(totals.setdefault(language, Counts()), **asdict(counts))
        return totals

    def _language(self, source: str, language: str) -> Counts:
        return self.languages_of_sources.setdefault(source, {}).setdefault(language, Counts())

    def of(self, source: str) -> dict[str, Counts]:
        """The splits of one source."""
        return self.splits.setdefault(source, {name: Counts() for name in SPLITS})

    def count(self, document: Document, split: str, tokens: int) -> dict[str, object]:
        """Count a document, and return its row of `documents.parquet`."""
        of_split = self.of(document.source)[split]
        row = _row(document, split, tokens, of_split.documents)
        for counts in (of_split, self._language(document.source, document.language or "unknown")):
            _grow(counts, 1, tokens, document.size)
        power = max(tokens, 1).bit_length() - 1
        self.lengths[power] = self.lengths.get(power, 0) + 1
        return row

    def add(self, part: dict[str, Any]) -> None:
        """Add another task's `Written`, in its `asdict` form."""
        for source, splits in part["splits"].items():
            mine = self.of(source)
            for split, counts in splits.items():
                _grow(mine[split], **counts)
        for source, languages in part["languages_of_sources"].items():
            for language, counts in languages.items():
                _grow(self._language(source, language), **counts)
        for power, count in part["lengths"].items():
            self.lengths[int(power)] = self.lengths.get(int(power), 0) + count


def _row(document: Document, split: str, tokens: int, number: int) -> dict[str, object]:
    return {
        "id": f"{document.source}:{document.name}",
        "source": document.source,
        "path": document.path,
        "licence": document.licence,
        "begin": document.begin,
        "end": document.end,
        "language": document.language,
        "split": split,
        "bytes": document.size,
        "tokens": tokens,
        "document": number,
        "bits_per_byte": document.bits_per_byte,
        "digest": document.digest,
        "text": document.text,
    }


def _grow(counts: Counts, documents: int, tokens: int, bytes: int) -> None:
    counts.documents += documents
    counts.tokens += tokens
    counts.bytes += bytes


class MakeTokenizer(PipelineStep):  # type: ignore[misc]
    """Chooses the held-out documents and the tokenizer's training text, and makes the tokenizer, in one task.

    It saves each task's splits beside its documents: 0 train, 1 held out, -1 dropped as near duplicates.
    """

    type, name = "tokenizer", "training"

    def __init__(self, config: PrepareConfig, sources: Sequence[str], documents: Path, pairs: Path, to: Path) -> None:
        super().__init__()
        self.config, self.sources, self.documents, self.pairs, self.to = config, sources, documents, pairs, to

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        sample = self._choose()
        shutil.rmtree(self.to, ignore_errors=True)
        self.to.mkdir(parents=True)
        vocab_size = make_tokenizer(self.config.tokenizer, self._texts(sample), self.to / "tokenizer")
        write(self.to / "vocab_size", str(vocab_size))
        yield from ()

    def _choose(self) -> Sample:
        fraction = self.config.heldout_fraction
        extremes = {source: Extremes() for source in self.sources}
        for source, numbers, drawn, _ in self._kept():
            extremes[source].see(drawn, numbers)
        sample = Sample(self.config.tokenizer.train_bytes)
        begins = first_indices(self.documents, len(self.sources))
        for task, (source, numbers, drawn, sizes) in enumerate(self._kept()):
            held = extremes[source].heldout(drawn, fraction)
            split = np.full(begins[task + 1] - begins[task], -1, np.int8)
            split[numbers - begins[task]] = held
            save_array(self.documents, task, "split", split)
            sample.see(drawn[~held], numbers[~held], sizes[~held])
        return sample

    def _kept(self) -> Iterator[tuple[str, I64, F64, I64]]:
        """Each task's source, and the indices, draws and sizes of its documents that are not duplicates."""
        begins = first_indices(self.documents, len(self.sources))
        for task, source in enumerate(self.sources):
            kept = np.ones(begins[task + 1] - begins[task], bool)
            kept[pairs_between(self.pairs, begins[task], begins[task + 1])[:, 0] - begins[task]] = False
            digests = read_array(self.documents, task, "digests")[kept]
            sizes = read_array(self.documents, task, "sizes")[kept]
            yield source, np.flatnonzero(kept) + begins[task], draws(digests, self.config.seed), sizes

    def _texts(self, sample: Sample) -> Iterator[str]:
        begins = first_indices(self.documents, len(self.sources))
        numbers = sample.numbers()
        for task in range(len(self.sources)):
            wanted = set(numbers[(numbers >= begins[task]) & (numbers < begins[task + 1])].tolist())
            if wanted:
                for number, document in enumerate(read_documents(self.documents, task), start=int(begins[task])):
                    if number in wanted:
                        chat = document.source in self.config.conversations
                        yield without_control_tokens(document.text) if chat else document.text


class Tokenize(PipelineStep):  # type: ignore[misc]
    """Tokenizes one task's documents, and writes a shard and a list of documents per split, and their counts."""

    type, name = "tokenizer", "shards"

    def __init__(self, documents: Path, tokenizer: Path, to: Path, conversations: frozenset[str]) -> None:
        super().__init__()
        self.documents, self.tokenizer, self.to, self.conversations = documents, tokenizer, to, conversations

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        dtype = token_dtype(int((self.tokenizer / "vocab_size").read_text()))
        encoder = encoder_of(str(self.tokenizer / "tokenizer"))
        splits = read_array(self.documents, rank, "split")
        sides, done = splits[splits >= 0], 0
        shards: dict[str, ShardWriter] = {}
        written = Written()
        self.to.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            table = stack.enter_context(
                parquet.ParquetWriter(self.to / f"{rank:05d}.parquet", _SCHEMA, compression="zstd")
            )
            for chunk in chunked(data, lambda document: document.size):
                encode = encoder.conversations if chunk[0].source in self.conversations else encoder.documents
                ids, counts = encode([document.text for document in chunk])  # a task has one source
                of_chunk = sides[done : done + len(chunk)]
                done += len(chunk)
                for side in np.unique(of_chunk).tolist():
                    if SPLITS[side] not in shards:
                        prefix = self.to / f"{rank:05d}-{SPLITS[side]}"
                        shards[SPLITS[side]] = stack.enter_context(ShardWriter(prefix, dtype))
                    mine = of_chunk == side
                    shards[SPLITS[side]].add_documents(ids[np.repeat(mine, counts)], counts[mine])
                rows = [
                    written.count(document, SPLITS[side], tokens)
                    for document, side, tokens in zip(chunk, of_chunk.tolist(), counts.tolist(), strict=True)
                ]
                table.write_table(pyarrow.Table.from_pylist(rows, schema=_SCHEMA))
                yield from chunk
        write(self.to / f"{rank:05d}.json", json.dumps(asdict(written)))


def join(parts: Path, tasks: int, sources: Sequence[str], to: Path, dtype: str, max_bytes: int) -> Written:
    """Join all tasks' shards into one per source and split, or several if it would exceed `max_bytes`, and their
    documents into one table; digest the shards' blocks. Empty shards are not written.
    """
    written = Written()
    shards: dict[tuple[str, str], ShardWriter] = {}
    (to / "shards").mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        table = stack.enter_context(parquet.ParquetWriter(to / "documents.parquet", _SCHEMA, compression="zstd"))
        for task in range(tasks):
            before = {split: written.of(sources[task])[split].documents for split in SPLITS}
            written.add(json.loads((parts / f"{task:05d}.json").read_text(encoding="utf-8")))
            with parquet.ParquetFile(parts / f"{task:05d}.parquet") as rows:
                for group in range(rows.num_row_groups):
                    table.write_table(_numbered(rows.read_row_group(group), before))
            for split in SPLITS:
                part = parts / f"{task:05d}-{split}"
                if part.with_name(part.name + ".idx").exists():
                    key = (split, sources[task])
                    if key not in shards:
                        prefix = to / "shards" / "-".join(key)
                        shards[key] = stack.enter_context(ShardWriter(prefix, dtype, max_bytes))
                    shards[key].add_shard(part)
    for (split, source), shard in shards.items():
        written.files.setdefault(source, {})[split] = shard.names
        for name in shard.names:
            write_blocks(to / "shards" / f"{name}.bin")
    return written


def _numbered(rows: Any, before: Mapping[str, int]) -> Any:
    """A task's rows with the documents' indices in the joined shards, which already have `before` documents."""
    train, heldout = (pyarrow.scalar(before[split]) for split in SPLITS)
    offsets = compute.if_else(compute.equal(rows["split"], SPLITS[0]), train, heldout)
    place = _SCHEMA.get_field_index("document")
    return rows.set_column(place, _SCHEMA.field(place), compute.add(rows["document"], offsets))


def write_index(config: PrepareConfig, written: Written, tokenizer: Path, to: Path) -> None:
    """Write `index.json`, which training reads first."""
    model = Tokenizer.from_file(str(tokenizer / "tokenizer" / "tokenizer.json"))
    index: dict[str, object] = {
        "vocab_size": int((tokenizer / "vocab_size").read_text()),
        "end_of_document": model.token_to_id(END_OF_TEXT),
        "sources": {
            name: {
                split: asdict(count) | {"files": written.files.get(name, {}).get(split, [])}
                for split, count in written.splits[name].items()
            }
            for name in config.sources
        },
    }
    weights = {name: source.weight for name, source in config.sources.items() if source.weight is not None}
    if weights:
        index["weights"] = weights
    (to / "index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
