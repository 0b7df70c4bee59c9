"""How far one checkpoint reads, from the command line: `python -m cupola_trainer.evaluation CHECKPOINT TOKENS
CONFIG.json N RESULTS.json`, where losses are taken of N held-out tokens.

Says on stderr which method it measures. A user's mistake is one line on stderr and exit status 2.
"""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from cupola_platform.errors import CupolaError
from cupola_trainer.config import LongContextConfig, ParallelConfig


def main(arguments: Sequence[str]) -> int:
    """Measure and give the exit status."""
    folder, tokens, path, _, results = map(Path, arguments)
    config = TypeAdapter(LongContextConfig).validate_json(path.read_bytes())
    warnings.simplefilter("ignore")  # Megatron's advice on what is not installed
    try:
        results.write_text(json.dumps(_measure(folder, tokens, config, int(arguments[3]))))
    except CupolaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _measure(folder: Path, tokens: Path, config: LongContextConfig, heldout: int) -> dict[str, object]:
    from transformers import AutoTokenizer

    from cupola_trainer import runtime
    from cupola_trainer.evaluation.likelihood import read_heldout
    from cupola_trainer.evaluation.long_context import measure

    runtime.start(ParallelConfig(), seed=0)
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokens / "tokenizer")
        stream = read_heldout(tokens, tokenizer, heldout).stream()
        return measure(folder, ParallelConfig(), stream, config, seed=0, progress=_say)
    finally:
        runtime.stop()


def _say(name: str) -> None:
    print(f"Measuring {name}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
