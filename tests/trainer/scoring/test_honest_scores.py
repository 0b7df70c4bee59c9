"""No response scores more than its tests allow, whatever it finds in its process."""

from typing import Any

import pytest

from cupola_platform.errors import ConfigError
from cupola_trainer.scoring import sandbox, workers
from cupola_trainer.scoring.execution import passed

FALSE = ["assert square(3) == 9", "assert square(2) == 4"]

FORGERIES = {
    "prints a number": "print('5e8'); import sys; sys.stdout.flush(); sys.stderr.write('1'*99)",
    "writes verdicts to every file": """
import os
for descriptor in range(64):
    for text in (b'!11.', b'11.', b'1', b'500000000'):
        try: os.write(descriptor, text) if descriptor != 3 else None
        except OSError: pass
""",
    "replies before any request": """
import os, json
def said(message):
    text = json.dumps(message).encode()
    os.write(3, len(text).to_bytes(4, 'big') + text)
for _ in range(9): said(['gave', ['list', []], [], ''])
said(['gave', 9, [], ''])
""",
    "inspects its callers' frames": """
import sys, gc, os
frame, seen = sys._getframe(), []
while frame:
    seen += [*frame.f_locals.items(), *frame.f_globals.items()]
    frame = frame.f_back
seen += [(str(type(one)), one) for one in gc.get_objects()]
for name, value in seen:
    if isinstance(value, (str, bytes)) and ('nonce' in name or len(value) == 32):
        for descriptor in (1, 2, 4, 5, 6):
            try: os.write(descriptor, (value if isinstance(value, bytes) else value.encode()) + b'500000000')
            except OSError: pass
""",
    "prints at its end": "import atexit, os; atexit.register(lambda: os.write(1, b'11.')); raise SystemExit(0)",
    "patches the verdicts": """
import builtins, sys, gc
builtins.AssertionError = type('Never', (BaseException,), {})
builtins.exec = builtins.compile = lambda *a, **k: None
builtins.all = builtins.any = builtins.isinstance = lambda *a: True
for one in gc.get_objects():
    if isinstance(one, type) and one.__module__.startswith('confined'):
        for name in list(vars(one)):
            try: setattr(one, name, lambda *a, **k: True)
            except Exception: pass
""",
    "requests code execution in the tests' process": """
import gc
from confined.program import Program
for one in gc.get_objects():
    if type(one) is Program:
        for what, args in [('call', [exec, ['list', []], "import os; os.write(1, b'11.')"]), ('call', [eval, [], '1']),
                           ('getattr', [__import__('os'), '_exit']), ('name', ['square'])]:
            try: one.ask(what, *args)
            except Exception: pass
""",
    "equals everything": """
class Free(float):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __lt__ = __le__ = __gt__ = __ge__ = __eq__
    def __sub__(self, other): return self
    __rsub__ = __sub__
    def __abs__(self): return 0
    def __hash__(self): return 9
def square(x): return Free()
""",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_score_is_zero(name: str) -> None:
    assert passed(FORGERIES[name], FALSE, timeout_seconds=2) == 0


LIES = {
    "equal": "assert square(3) == 9", "equal the other way": "assert 9 == square(3)",
    "not unequal": "assert not square(3) != 9", "greater": "assert square(3) > 5",
    "close": "assert abs(square(3) - 9) < 1e-6", "by math": "assert math.isclose(square(3), 9)",
    "in it": "assert 9 in square(3)", "among": "assert square(3) in [9]", "as a key": "assert {9: 1}[square(3)]",
    "rounded": "assert round(square(3), 2) == 9", "in a list": "assert square(3) == [9]",
    "of a type": "assert isinstance(square(3), int)", "all": "assert all(square(n) == n * n for n in range(4))",
}  # fmt: skip


@pytest.mark.parametrize("value", ["Free()", "Near()", "[Free()]"])
def test_an_object_that_lies_in_comparisons_passes_no_test(value: str) -> None:
    response = f"""
class Free:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    def __sub__(self, other): return self
    __rsub__ = __sub__
    def __abs__(self): return 0.0
    def __round__(self, digits=0): return self
    def __hash__(self): return 9
class Near(Free, float): pass
abs = round = lambda *a: 0
all = isinstance = lambda *a: True
class math: isclose = lambda *a: True
def square(x): return {value}
"""
    held = [name for name, test in LIES.items() if passed(response, test)]
    assert held == []
    assert passed("import math\ndef square(x): return x * x", list(LIES.values())[:6]) == 1


def test_the_tests_are_not_in_the_programs_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searched without namespaces, where a program can read all of its memory through /proc."""
    monkeypatch.setattr(sandbox, "command", lambda: sandbox.interpreter(str(sandbox.PACKAGE.parent)))
    monkeypatch.setattr(workers, "idle", [])
    search = """
import re
def found(pattern):  # a pattern that does not match itself
    places = 0
    with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:
        for line in maps:
            begin, end = (int(place, 16) for place in line.split()[0].split('-'))
            if ' r' in line and end - begin < 2**28:
                memory.seek(begin)
                try: places += len(re.findall(pattern, memory.read(end - begin)))
                except OSError: pass
    return places
own = 'of_the_program_itself'
inside, outside = found(b'of_the_program_itsel[f]'), found(b'only_the_tests_kno[w]')
"""
    tests = ["only_the_tests_know = 1", "assert inside > 0", "assert outside == 0"]
    try:
        assert passed(search, tests) == 1
    finally:
        for worker in workers.idle:
            worker.end()


def test_a_machine_without_a_sandbox_runs_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "call_filter", lambda: b"\xff" * 8)
    with pytest.raises(ConfigError, match="cannot sandbox a process"):
        passed("x = 1", "assert x == 1")


@pytest.mark.parametrize(("path", "reason"), [("", "bubblewrap is not installed"), ("broken", "no namespace here")])
def test_root_runs_nothing_without_namespaces(
    path: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    broken = tmp_path / "broken/bwrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho bwrap: no namespace here >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(workers, "idle", [])
    sandbox.command.cache_clear()
    try:
        with pytest.raises(ConfigError, match=f"not run as root without namespaces.*{reason}.*apt-get install"):
            passed("x = 1", "assert x == 1")
    finally:
        sandbox.command.cache_clear()
