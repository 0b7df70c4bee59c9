"""The trainer's commands besides jobs: `python -m cupola_trainer COMMAND ...`, in one process.

A user error is one line on stderr and exit status 2.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from cupola_platform.errors import CupolaError, refusal


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore")  # Megatron's advice about missing packages
    try:
        options.run(options)
    except CupolaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if (line := refusal(error)) is None:
            raise
        print(line, file=sys.stderr)
        return CupolaError.exit_code
    return 0


def _export(options: argparse.Namespace) -> None:
    from cupola_trainer.conversion.exporting import export
    from cupola_trainer.lora.exporting import export_adapter

    print((export_adapter if options.adapter else export)(options.checkpoint, options.to))


def _import(options: argparse.Namespace) -> None:
    from cupola_trainer.conversion.importing import import_

    print(import_(options.source, options.to).path)


def _generate(options: argparse.Namespace) -> None:
    from cupola_trainer.generation.continuation import continue_chat, continue_text
    from cupola_trainer.generation.sampling import Sampling

    sampling = Sampling(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    if options.chat:
        print(continue_chat(options.checkpoint, options.chat, sampling, options.seed, options.template_date))
    else:
        print(continue_text(options.checkpoint, options.prompt, sampling, options.seed))


def _score(options: argparse.Namespace) -> None:
    from cupola_trainer.jobs.score import score_file

    print(json.dumps(score_file(options.checkpoint, options.file, options.template_date), ensure_ascii=False))


def _diff(options: argparse.Namespace) -> None:
    from cupola_trainer.conversion.differences import compare_weights

    print(json.dumps(compare_weights(options.checkpoint, options.other)))


def _long_context(options: argparse.Namespace) -> None:
    from pydantic import TypeAdapter
    from transformers import AutoTokenizer

    from cupola_trainer import runtime
    from cupola_trainer.config import LayoutConfig, LongContextConfig
    from cupola_trainer.evaluation.likelihood import read_heldout
    from cupola_trainer.evaluation.long_context import measure

    config = TypeAdapter(LongContextConfig).validate_json(options.config.read_bytes())
    runtime.start(LayoutConfig(), seed=0)
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.tokens / "tokenizer")
        stream = read_heldout(options.tokens, tokenizer, options.heldout).stream()
        reach = measure(options.checkpoint, LayoutConfig(), stream, config, seed=0, progress=_print_method)
    finally:
        runtime.stop()
    options.results.write_text(json.dumps(reach))


def _print_method(name: str) -> None:
    print(f"Measuring {name}", file=sys.stderr, flush=True)


def _plan_save(options: argparse.Namespace) -> None:
    from pydantic import TypeAdapter

    from cupola_trainer import runtime
    from cupola_trainer.config import LayoutConfig, ModelConfig
    from cupola_trainer.config.model.sizes import parameter_count
    from cupola_trainer.planning.saves import plan_save, written_by

    model = TypeAdapter(ModelConfig).validate_json(options.model)
    layout = TypeAdapter(LayoutConfig).validate_json(options.layout)
    dtype, moments = runtime.dtype(options.precision), runtime.dtype(options.moments)
    if options.rank is None:
        summary = plan_save(model, layout, dtype, moments).summary(
            int(options.host_memory * 2**30), options.ranks_per_node
        )
        print(json.dumps({"parameters": parameter_count(model), **summary}))
    else:
        written = written_by(options.rank, model, layout, dtype, moments)
        rows = [{"part": part, **box.entry("")} for part, boxes in written.items() for box in boxes]
        print(json.dumps([{name: value for name, value in row.items() if name != "blake3"} for row in rows]))


def _surprise(options: argparse.Namespace) -> None:
    from cupola_trainer.evaluation.surprise import answer_lines

    answer_lines(options.checkpoint, options.max_bytes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cupola_trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a checkpoint as a transformers folder")
    export.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    export.add_argument("--to", type=Path, required=True, metavar="DIR")
    export.add_argument("--adapter", action="store_true", help="the checkpoint holds adapters: write them as PEFT does")
    import_ = commands.add_parser("import", help="import a transformers folder as a checkpoint")
    import_.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR")
    import_.add_argument("--to", type=Path, required=True, metavar="DIR")
    generate = commands.add_parser("generate", help="continue a text, or respond to a conversation")
    generate.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    asked = generate.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT")
    asked.add_argument("--chat", type=Path, metavar="FILE", help="JSON with messages and tools")
    generate.add_argument("--template-date", type=date.fromisoformat, metavar="DAY")
    generate.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    generate.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    generate.add_argument("--seed", type=int, default=0)
    score = commands.add_parser("score", help="score conversations with a reward model")
    score.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    score.add_argument("--file", type=Path, required=True, metavar="FILE")
    score.add_argument("--template-date", type=date.fromisoformat, metavar="DAY")
    diff = commands.add_parser("diff", help="compare the weights of two checkpoints")
    diff.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    diff.add_argument("--other", type=Path, required=True, metavar="DIR")
    reach = commands.add_parser("long-context", help="long-context evaluation; prints each method on stderr")
    reach.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    reach.add_argument("--tokens", type=Path, required=True, metavar="DIR")
    reach.add_argument("--config", type=Path, required=True, metavar="FILE", help="a LongContextConfig as JSON")
    reach.add_argument("--heldout", type=int, required=True, metavar="N", help="held-out tokens to compute losses on")
    reach.add_argument("--results", type=Path, required=True, metavar="FILE")
    surprise = commands.add_parser("surprise", help="bits per byte of texts: JSON lists on stdin, lists on stdout")
    surprise.add_argument("checkpoint", type=Path, metavar="DIR")
    surprise.add_argument("max_bytes", type=int, metavar="BYTES")
    plan = commands.add_parser("plan-save", help="plan the checkpoints of a training job; prints JSON")
    plan.add_argument("--model", required=True, metavar="JSON", help="a ModelConfig")
    plan.add_argument("--layout", required=True, metavar="JSON", help="a LayoutConfig")
    plan.add_argument("--precision", choices=("bf16", "fp32"), required=True)
    plan.add_argument("--moments", choices=("bf16", "fp32"), default="fp32")
    plan.add_argument("--host-memory", type=float, required=True, metavar="GIB", help="as in CheckpointConfig")
    plan.add_argument("--ranks-per-node", type=int, required=True, metavar="N")
    plan.add_argument("--rank", type=int, metavar="N", help="print what this rank writes instead")
    for name, run in COMMANDS.items():
        commands.choices[name].set_defaults(run=run)
    return parser


COMMANDS = {
    "export": _export,
    "import": _import,
    "generate": _generate,
    "score": _score,
    "diff": _diff,
    "long-context": _long_context,
    "surprise": _surprise,
    "plan-save": _plan_save,
}
