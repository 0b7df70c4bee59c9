"""`cupola presets`."""

import typer

from cupola_flows.cli.options import JsonOption, print_rows
from cupola_trainer.config.model.presets import PRESETS
from cupola_trainer.config.model.sizes import active_parameters, parameter_count


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog="Example: cupola presets --json")(presets)


def presets(as_json: JsonOption = False) -> None:
    """List published model shapes that recipes can use, as in model: {preset: qwen2-0.5b}."""

    def count(parameters: int) -> int | str:
        return parameters if as_json else f"{parameters / 1e6:,.0f}M"

    rows = [
        {
            "preset": name,
            "parameters": count(parameter_count(model)),
            "active": count(active_parameters(model)),
            "layers": model.num_layers,
            "hidden": model.hidden_size,
            "heads": model.num_attention_heads,
            "groups": model.num_query_groups,
            "vocabulary": model.vocab_size,
            "longest": model.max_position_embeddings,
        }
        for name, model in PRESETS.items()
    ]
    print_rows(rows, as_json=as_json, empty="")
