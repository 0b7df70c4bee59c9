"""The program's process: runs the code, then operates on its objects on behalf of the tests' process."""

import builtins
import io
import os
import sys
import types
from typing import Any

from .dialogue import Dialogue
from .wire import Gone

LONGEST = 2**20
"""Maximum bytes of standard output kept between two replies; the rest is dropped."""


class Output(io.RawIOBase):
    """Standard output in memory, truncated at a limit."""

    def __init__(self) -> None:
        self.held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, text: Any) -> int:
        self.held += bytes(text)[: LONGEST - len(self.held)]
        return len(text)


class Input(io.TextIOBase):
    """Standard input, forwarded from the tests' `sys.stdin`."""

    def __init__(self, program: Dialogue) -> None:
        self.program = program

    def readable(self) -> bool:
        return True

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        return str(self.program.ask("readline"))

    def read(self, size: int | None = -1, /) -> str:
        return "".join(iter(self.readline, ""))


class Program(Dialogue):
    """Serves every request, since it holds only its own objects."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self.output = Output()
        self.module = types.ModuleType("answer")

    def may(self, what: str, args: list[Any]) -> bool:
        return True

    def own(self, what: str, args: list[Any]) -> Any:
        space = self.module.__dict__
        return list(space) if what == "names" else space[args[0]]

    def written(self) -> str:
        text = self.output.held.decode(errors="replace")
        self.output.held.clear()
        return text


def run_program(code: str, descriptor: int) -> None:
    """Run the code, then serve requests. Exits the process, immediately if the code raises."""
    program = Program(descriptor)
    sys.stdin = Input(program)  # type: ignore[assignment]
    sys.stdout = io.TextIOWrapper(program.output, encoding="utf-8", write_through=True)  # type: ignore[type-var]
    sys.modules["answer"] = program.module
    program.module.__dict__["__builtins__"] = builtins
    try:
        exec(compile(code, "<answer>", "exec"), program.module.__dict__)  # noqa: S102 - the purpose of this process
        program.serve()
    except (Gone, BaseException):  # noqa: BLE001 - the tests' process sees the closed socket
        os._exit(0)
