"""A preparation on Ray, if it is installed (`pip install ray`)."""

from pathlib import Path

import pytest

from cupola_platform.corpus.config import ExecutorConfig, Files, PrepareConfig, TokenizerConfig
from cupola_platform.corpus.pipeline.preparation import prepare

SENTENCE = (
    "This is page {} of the notes about the river, and about the {} people who live beside it in their {} houses. "
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_ray_writes_the_same_as_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "texts").mkdir()
    for number in range(12):
        lines = (SENTENCE.format(number * 10 + line, line + 1, number + 2) for line in range(6))
        (tmp_path / "texts" / f"{number:02}.txt").write_text("\n".join(lines))
    written = []
    for executor in (ExecutorConfig(ray=True, workers=2, memory_gb=1), ExecutorConfig(workers=1)):
        config = PrepareConfig(
            sources={name: Files(path=str(tmp_path / "texts" / f"{name}*.txt")) for name in ("0", "1")},
            quality=None,
            tokenizer=TokenizerConfig(vocab_size=320),
            executor=executor,
        )
        to = tmp_path / str(executor.ray)
        prepare(config, to)
        written.append({path.relative_to(to): path.read_bytes() for path in to.rglob("*") if path.is_file()})
    assert written[0] == written[1]
    assert len(written[0]) >= 10
