"""The date in a chat template's prompt: the recipe's `template_date`, never the clock. Imports no torch.

Llama 3.2's template calls `strftime_now`, a function of transformers, for today's date; FireFunction's expects a
`datetime` variable. With the clock, the same data would have different tokens tomorrow, and a job resumed on another
day would continue on different data. So the date is saved with the tokenizer, as `template_date` in
tokenizer_config.json, and is the same in training, sampling and evaluation.
"""

from datetime import date, datetime, time

from cupola_platform.errors import ConfigError

VARIABLES = {"date_string": "%d %b %Y", "datetime": "%Y-%m-%d %H:%M:%S", "current_date": "%Y-%m-%d"}
"""Variables in which templates expect a date, and their formats: Llama's, FireFunction's, and others'."""
DIRECTIVES = [f"%{flag}{letter}" for flag in ("", "-") for letter in "aAwdbBmyYHIpMSfjUWcxXGuV"]
"""Directives of strftime. The time of day is midnight."""
MISSING = "cupola: no template_date"


class MissingDateError(ConfigError):
    """A chat template needs a date and none is set."""

    def __init__(self) -> None:
        super().__init__(
            "The tokenizer's chat template writes today's date, but tokens must not depend on the day. Set "
            "`template_date`, such as 2026-11-30, in the recipe (--template-date on the command line)."
        )

    @staticmethod
    def is_meant_by(error: Exception) -> bool:
        """Whether a template failed for this reason: it called `strftime_now`, or one of `VARIABLES` is undefined."""
        return MISSING in str(error) or any(f"'{name}' is undefined" in str(error) for name in VARIABLES)


def dated(template: str, day: str | None) -> tuple[str, dict[str, str]]:
    """A chat template that never reads the clock, and the variables to pass to it.

    Args:
        day: ISO date; None for a template that fails if it needs a date.
    """
    if "strftime_now" in template:
        # defined in the template itself: transformers passes no functions through, and its own takes no date
        template = f"{{%- macro strftime_now(format) -%}}{_written(day)}{{%- endmacro +%}}{template}"
    if day is None:
        return template, {}
    moment = _moment(day)
    return template, {name: moment.strftime(form) for name, form in VARIABLES.items() if name in template}


def _written(day: str | None) -> str:
    """Jinja that renders `format` with its directives replaced."""
    if day is None:
        return f"{{{{ raise_exception('{MISSING}') }}}}"
    moment = _moment(day)
    replaced = "".join(f" | replace({of!r}, {moment.strftime(of)!r})" for of in DIRECTIVES)
    return f"{{{{ format{replaced} | replace('%%', '%') }}}}"


def _moment(day: str) -> datetime:
    return datetime.combine(date.fromisoformat(day), time())
