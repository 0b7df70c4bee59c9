"""The summary at the end of a run: stages, evaluations, promotion and suggested next commands."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cupola_flows.reports.comparison import interval
from cupola_flows.runs.session import Session
from cupola_flows.stages.base import Stage
from cupola_flows.terminal.display import clock
from cupola_flows.terminal.text import plain, visible
from cupola_platform.artifacts import Artifact
from cupola_platform.rows.drops import in_words
from cupola_trainer.evaluation.long_context_page import summary

SHOWN_RESPONSES = 3
SHOWN_TEXT = 160


def print_results(session: Session, console: Console) -> None:
    """Print the summary of a run; if it ended early, of the finished stages."""
    console.print(Panel(_stages(session), title=f"[bold]{session.recipe.name}[/]", title_align="left"))
    for name, outcome in session.outcomes.items():
        if outcome.artifact.kind == "evaluation":
            print_evaluation(name, read_results(outcome.artifact), console)
        elif outcome.artifact.kind == "promotion":
            console.print(_promotion(_read(outcome.artifact.path / "decision.json")), highlight=False)
    if session.complete:
        console.print(_next(session), highlight=False)


def print_evaluation(name: str, results: dict[str, Any], console: Console) -> None:
    """Print the measurements of an evaluation, sample generations, and long-context results if there are any."""
    console.print(Panel(_evaluation(results), title=plain(f"{name}: held-out text and tasks"), title_align="left"))
    console.print(Panel(_samples(results), title="samples", title_align="left"))
    for checkpoint, entry in results["checkpoints"].items():
        if reach := entry.get("long_context"):
            console.print(Panel(_reach(reach), title=plain(f"{checkpoint}: long context"), title_align="left"))


def read_results(evaluation: Artifact) -> dict[str, Any]:
    """The `results.json` of an evaluation."""
    return _read(evaluation.path / "results.json")


def _stages(session: Session) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("stage", "state", "artifact", "time", "result"):
        table.add_column(heading, no_wrap=heading == "artifact", justify="right" if heading == "time" else "left")
    for name in session.names:
        outcome = session.outcomes.get(name)
        if outcome:
            result = summarize(session.recipe.stages[name], outcome.artifact.metrics)
            time = clock(outcome.seconds) if outcome.state == "completed" else ""
            table.add_row(name, outcome.state, outcome.artifact.id, time, plain(result))
        else:
            table.add_row(name, session.display.lines[name].state, "", "", "")
    return table


def summarize(stage: Stage, metrics: dict[str, float]) -> str:
    """The most important metrics of a stage on one line, with what it dropped and why."""
    reasons = {name.removeprefix("dropped_"): int(n) for name, n in metrics.items() if name.startswith("dropped_")}
    line = stage.summary({name: value for name, value in metrics.items() if not name.startswith("dropped")})
    return f"{line}, dropped {sum(reasons.values()):,}: {in_words(reasons, {})}" if reasons else line


def _evaluation(results: dict[str, Any]) -> Table:
    checkpoints: dict[str, Any] = results["checkpoints"]
    tasks = sorted({task for entry in checkpoints.values() for task in entry.get("tasks", {})})
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("checkpoint", "bits per byte", "accuracy, 95% interval", *tasks):
        table.add_column(plain(heading))
    table.add_row("unigram", f"{results['unigram_bits_per_byte']:.4f}")
    for name, entry in checkpoints.items():
        per_task = [
            f"{entry['tasks'][task]['accuracy']:.1%}" if task in entry.get("tasks", {}) else "" for task in tasks
        ]
        table.add_row(plain(name), f"{entry['bits_per_byte']:.4f}", interval(entry.get("accuracy")), *per_task)
    return table


def _reach(measured: dict[str, Any]) -> Table:
    rows = summary(measured["methods"])
    table = Table(*rows[0], box=None, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row.values())
    return table


def _samples(results: dict[str, Any]) -> RenderableType:
    lines: list[Text] = []
    for name, entry in results["checkpoints"].items():
        lines.append(plain(name, "bold"))
        for sample in entry.get("generations", [])[:SHOWN_RESPONSES]:
            lines.append(Text.assemble("  ", (_flat(sample["prompt"]), "cyan"), " ", _flat(sample["completion"])))
        for response in entry.get("responses", [])[:SHOWN_RESPONSES]:
            mark = ("right", "green") if response["score"] == 1 else ("wrong", "red")
            lines.append(
                Text.assemble("  ", (_flat(response["prompt"]), "cyan"), " ", _flat(response["response"]), " ", mark)
            )
    return Group(*lines)


def _promotion(decision: dict[str, Any]) -> Text:
    verb = "now names" if decision["promoted"] else "was not moved to"
    reasons = "\n".join(f"  - {reason}" for reason in decision["reasons"])
    best = plain(f"{decision['stage']} {decision['candidate'][:12]}", "bold")
    return Text.assemble(plain(decision["alias"], "bold"), f" {verb} ", best, ":\n", plain(reasons))


def _next(session: Session) -> str:
    made = [outcome.artifact.id for outcome in session.outcomes.values() if outcome.artifact.kind == "checkpoint"]
    if not made:
        return "Browse: cupola up"
    artifact = _promoted(session) or made[-1]
    return (
        f"Browse: cupola up   Lineage: cupola lineage {artifact}   Generate: cupola checkpoint generate {artifact} "
        "--prompt TEXT"
    )


def _promoted(session: Session) -> str | None:
    """The alias that the run moved, if any."""
    decisions = [
        _read(o.artifact.path / "decision.json") for o in session.outcomes.values() if o.artifact.kind == "promotion"
    ]
    return next((str(decision["alias"]) for decision in decisions if decision["promoted"]), None)


def _flat(text: str) -> str:
    flat = " ".join(visible(text).split())
    return flat if len(flat) <= SHOWN_TEXT else f"{flat[:SHOWN_TEXT]}..."


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
