"""The date that a chat template writes into a prompt: the recipe's `template_date`, never the clock. Imports no torch.

Llama 3.2's template asks `strftime_now`, a function of transformers, for today; FireFunction's wants a `datetime` to be
given. The same data would be other tokens tomorrow, and a job that goes on another day would go on with other data. So
the date is kept with the tokenizer, in tokenizer_config.json's `template_date`, and is the same in training,
sampling and evaluation.
"""

from datetime import date, datetime, time

from cupola_platform.errors import ConfigError

VARIABLES = {"date_string": "%d %b %Y", "datetime": "%Y-%m-%d %H:%M:%S", "current_date": "%Y-%m-%d"}
"""What templates call a date that is given to them, and how it is written: Llama's, FireFunction's, and others'."""
DIRECTIVES = [f"%{flag}{letter}" for flag in ("", "-") for letter in "aAwdbBmyYHIpMSfjUWcxXGuV"]
"""Of strftime. The time of day is midnight."""
MISSING = "cupola: no template_date"


class MissingDateError(ConfigError):
    """A chat template asks for a date that nobody set."""

    def __init__(self) -> None:
        super().__init__(
            "The tokenizer's chat template writes today's date, and tokens must not depend on the day. Set "
            "`template_date`, a day such as 2026-11-30, in the recipe (on the command line --template-date)."
        )

    @staticmethod
    def is_meant_by(error: Exception) -> bool:
        """Whether this is why a template failed: it called `strftime_now`, or one of `VARIABLES` is not defined."""
        return MISSING in str(error) or any(f"'{name}' is undefined" in str(error) for name in VARIABLES)


def dated(template: str, day: str | None) -> tuple[str, dict[str, str]]:
    """A chat template that never asks the clock, and the variables to give it.

    Args:
        day: ISO; none for a template that fails where it asks for a date.
    """
    if "strftime_now" in template:
        # Defined in the template itself: transformers hands no functions through, and its own takes no date.
        template = f"{{%- macro strftime_now(format) -%}}{_written(day)}{{%- endmacro +%}}{template}"
    if day is None:
        return template, {}
    moment = _moment(day)
    return template, {name: moment.strftime(form) for name, form in VARIABLES.items() if name in template}


def _written(day: str | None) -> str:
    """Jinja that writes `format` with its directives replaced."""
    if day is None:
        return f"{{{{ raise_exception('{MISSING}') }}}}"
    moment = _moment(day)
    replaced = "".join(f" | replace({of!r}, {moment.strftime(of)!r})" for of in DIRECTIVES)
    return f"{{{{ format{replaced} | replace('%%', '%') }}}}"


def _moment(day: str) -> datetime:
    return datetime.combine(date.fromisoformat(day), time())
