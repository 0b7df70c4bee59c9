"""Checkpoints from the command line: `python -m cupola_trainer.conversion export|import|generate|score|diff`.

A user's mistake is one line on stderr and exit status 2.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from cupola_platform.errors import CupolaError, refusal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore")  # Megatron's advice on what is not installed
    try:
        if options.command == "export" and options.adapter:
            from cupola_trainer.lora.exporting import export_adapter

            print(export_adapter(options.checkpoint, options.to))
        elif options.command == "export":
            from cupola_trainer.conversion.exporting import export

            print(export(options.checkpoint, options.to))
        elif options.command == "import":
            from cupola_trainer.conversion.importing import import_

            print(import_(options.source, options.to).path)
        elif options.command == "score":
            from cupola_trainer.rewarding import score_file

            rows = score_file(options.checkpoint, options.file, options.template_date)
            print(json.dumps(rows, ensure_ascii=False))
        elif options.command == "diff":
            from cupola_trainer.conversion.differences import compare_weights

            print(json.dumps(compare_weights(options.checkpoint, options.other)))
        else:
            from cupola_trainer.rollout.continuation import answer_chat, continue_text
            from cupola_trainer.rollout.sampling import Sampling

            sampling = Sampling(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
            if options.chat:
                print(answer_chat(options.checkpoint, options.chat, sampling, options.seed, options.template_date))
            else:
                print(continue_text(options.checkpoint, options.prompt, sampling, options.seed))
    except CupolaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if (line := refusal(error)) is None:
            raise
        print(line, file=sys.stderr)
        return CupolaError.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cupola_trainer.conversion", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a checkpoint as a transformers folder")
    export.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    export.add_argument("--to", type=Path, required=True, metavar="DIR")
    export.add_argument("--adapter", action="store_true", help="the checkpoint holds adapters: write them as PEFT does")
    import_ = commands.add_parser("import", help="make a checkpoint of a transformers folder")
    import_.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR")
    import_.add_argument("--to", type=Path, required=True, metavar="DIR")
    generate = commands.add_parser("generate", help="continue a text, or answer a conversation")
    generate.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    asked = generate.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT")
    asked.add_argument("--chat", type=Path, metavar="FILE", help="JSON with messages and tools")
    generate.add_argument("--template-date", type=date.fromisoformat, metavar="DAY")
    generate.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    generate.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    generate.add_argument("--seed", type=int, default=0)
    score = commands.add_parser("score", help="what a reward model gives conversations")
    score.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    score.add_argument("--file", type=Path, required=True, metavar="FILE")
    score.add_argument("--template-date", type=date.fromisoformat, metavar="DAY")
    diff = commands.add_parser("diff", help="how far apart two checkpoints' weights are")
    diff.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    diff.add_argument("--other", type=Path, required=True, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
