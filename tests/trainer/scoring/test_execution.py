"""Model-written code is scored, and can do nothing else."""

import socket
import time
from pathlib import Path

import pytest

from cupola_trainer.scoring.execution import code_of, passed, shares_passed

SQUARE = ["assert square(3) == 9", "assert square(-2) == 4", "assert square(0) == 0", "assert square(2) == 5"]


@pytest.mark.parametrize(
    ("response", "share"),
    [
        ("def square(x):\n    return x * x", 0.75),
        ("Here it is:\n```python\ndef square(x):\n    return x ** 2\n```\nDone.", 0.75),
        ("def square(x):\n    return 5", 0.25),
        ("def square(x): return x *", 0.0),
        ("raise SystemExit(0)", 0.0),
        ("import math, re, collections\ndef square(x):\n    return int(math.pow(x, 2))", 0.75),
        ("", 0.0),
        ("\0", 0.0),
    ],
)
def test_the_score_is_the_share_of_tests_that_pass(response: str, share: float) -> None:
    assert passed(response, SQUARE) == share


def test_tests_may_be_one_string_and_responses_are_scored_in_parallel() -> None:
    together = "\n".join(SQUARE[:3])
    right, wrong = "def square(x):\n    return x * x", "def square(x):\n    return 9"
    assert shares_passed([(right, together), (wrong, together), (wrong, SQUARE)]) == [1.0, 0.0, 0.25]


def test_code_is_taken_from_the_first_fenced_block() -> None:
    assert code_of("x = 1") == "x = 1"
    assert code_of("Sure.\n```\nx = 2\n```\n```\nx = 3\n```") == "x = 2\n"
    assert code_of("```py\nx = 4") == "x = 4"


@pytest.mark.parametrize("loop", ["while True: pass", "import time\ntime.sleep(60)"])
def test_an_endless_response_is_killed(loop: str) -> None:
    began = time.monotonic()
    assert passed(loop, ["assert True"], timeout_seconds=0.5) == 0
    assert time.monotonic() - began < 8


def test_a_response_cannot_exceed_its_memory_limit() -> None:
    assert (
        passed(
            "try:\n    x = bytearray(2**30)\n    fits = True\nexcept MemoryError:\n    fits = False",
            ["assert not fits"],
        )
        == 1
    )


@pytest.mark.parametrize(
    "attempt",
    [
        "open('{folder}/new', 'w')",
        "open('{folder}/kept', 'r+')",
        "__import__('os').remove('{folder}/kept')",
        "__import__('os').rename('{folder}/kept', '{folder}/moved')",
        "__import__('os').truncate('{folder}/kept', 0)",
        "__import__('os').mkdir('{folder}/made')",
        "__import__('os').fork()",
        "__import__('os').kill(1, 0)",
        "__import__('os').execv('/bin/true', ['true'])",
        "__import__('socket').socket()",
        "__import__('socket').create_connection(('127.0.0.1', {port}))",
        "__import__('resource').setrlimit(0, (60, 60))",
    ],
)
def test_access_outside_is_refused_by_the_kernel(attempt: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        line = attempt.format(folder=tmp_path, port=server.getsockname()[1])
        response = f"try:\n    {line}\n    refused = False\nexcept (PermissionError, ValueError):\n    refused = True"
        assert passed(response, ["assert refused"]) == 1, attempt
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("kept", "kept")]


def test_ctypes_does_not_escape_the_sandbox(tmp_path: Path) -> None:
    call = f"import ctypes\nresult = ctypes.CDLL(None).open(b'{tmp_path}/new', 0o101, 0o600)"
    assert passed(call, ["assert result == -1"]) == 1
    assert not list(tmp_path.iterdir())


def test_a_response_sees_no_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPOLA_SECRET", "x")
    assert passed("import os", ["assert 'CUPOLA_SECRET' not in os.environ"]) == 1


LIBRARY = """import math, os, collections
from dataclasses import dataclass
from enum import Enum
class Stack:
    
    made = 0
    def __init__(self): self.items=[]; Stack.made += 1
    def push(self,x): self.items.append(x); return self
    def pop(self):
        if not self.items: raise Empty("nothing")
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, i): return self.items[i]
    @property
    def top(self): return self.items[-1]
class Empty(Exception): pass
class Child(Stack): pass
@dataclass
class Point:
    x: int
    y: int = 0
    def __add__(self, o): return Point(self.x+o.x, self.y+o.y)
P = collections.namedtuple("P", "a b")
class Color(Enum): RED=1; BLUE=2
def point(): return P(1,2)
def sort(x): x.sort()
def rotate(m): m[:] = [list(r) for r in zip(*m[::-1])]
def apply(f, x): return f(x)
def gen(n):
    for i in range(n): yield i
def hello(): print("hello"); return input()
def fail(): raise ValueError("no", 3)
def total(*a, **k): return sum(a) + sum(k.values())
def last(node):
    while node.next: node = node.next
    return node.value
def link(a, b): a.next = b
counter = 0
def inc():
    global counter
    counter += 1
_one = object()
def one(): return _one
def big(n): return 10**n
class L(list): pass
def el(): return L([1,2])
class Ctx:
    def __enter__(self): return 5
    def __exit__(self, t, v, tb): return t is ValueError
def fr():
    from fractions import Fraction
    return Fraction(1,3)
"""
USES = {
    "methods, items and length": """s=Stack(); s.push(1).push(2); assert s.pop()==2 and len(s)==1 and list(s)==[1] and s[0]==1 and s.top==1 and 1 in s and 2 not in s and s""",
    "an exception of the response's own": """try:
 Stack().pop()
except Empty as e:
 assert str(e)=="nothing"
else:
 assert False""",
    "the arguments of an exception": """try:
 fail()
except ValueError as e:
 assert e.args==("no",3)
else: assert False""",
    "isinstance and issubclass": """assert isinstance(Child(), Stack) and not isinstance(Stack(), Child) and issubclass(Child, Stack) and not isinstance(3, Stack)""",
    "operators of two objects": """assert Point(1)+Point(2,3)==Point(3,3) and Point(1)!=Point(2) and Point(x=1).x==1 and repr(Point(1))=="Point(x=1, y=0)" """,
    "a named tuple": """assert point()==(1,2) and point().a==1 and point()[1]==2 and tuple(point())==(1,2) and (1,2)==point()""",
    "a list sorted in place": """x=[3,1,2]
sort(x)
assert x==[1,2,3]""",
    "a matrix turned in place": """m=[[1,2],[3,4]]
rotate(m)
assert m==[[3,1],[4,2]]""",
    "functions handed over": """assert apply(lambda v: v+1, 3)==4 and apply(len, "abc")==3 and apply(math.sqrt, 9)==3""",
    "generators": """assert list(gen(3))==[0,1,2] and sum(gen(4))==6 and next(gen(1))==0""",
    "standard input and output": """import io, contextlib, sys
sys.stdin=io.StringIO("you\\n")
b=io.StringIO()
with contextlib.redirect_stdout(b):
 r=hello()
assert r=="you" and b.getvalue()=="hello\\n" """,
    "any arguments": """assert total(1,2,k=3)==6""",
    "objects of the test's own class, changed": """class N:
  def __init__(s,v,n=None): s.value=v; s.next=n
assert last(N(1,N(2)))==2
a,b=N(1),N(2)
link(a,b)
assert a.next is b""",
    "a global that changes": """inc()
assert counter==1""",
    "one object is itself": """assert one() is one() and one()==one()""",
    "a number of 5,000 digits": """assert big(5000)==10**5000""",
    "a list of the response's own class": """assert el()==[1,2] and el()[0]==1 and len(el())==2""",
    "a context manager": """with Ctx() as c:
 assert c==5
 raise ValueError
assert True""",
    "a fraction": """from fractions import Fraction
assert fr()==Fraction(1,3)""",
    "an enumeration": """assert Color.RED==Color.RED and Color.RED!=Color.BLUE and Color.RED.value==1 and Color(2)==Color.BLUE and [c.name for c in Color]==["RED","BLUE"]""",
    "HumanEval's check(candidate)": """def check(candidate):
  assert candidate(1,2)==3
  assert candidate()==0
check(total)""",
    "a module that the response imported": """assert math.isclose(big(1), 10.0)""",
    "a key function": """assert sorted([Point(1)], key=lambda p:p.x)[0].x==1""",
    "a key of a dictionary": """assert {Color.RED: 1}[Color.RED]==1""",
    "types": """assert type(total(1)) is int and callable(total) and hasattr(Stack,"made") and not hasattr(Stack,"nope")""",
    "a built-in exception": """try:
  total("a")
except TypeError: pass
else: assert False""",
    "unittest": """import unittest
class C(unittest.TestCase):
  def test(self): self.assertEqual(total(1,2),3)
  def test2(self):
    with self.assertRaises(ValueError): fail()
r=unittest.TextTestRunner(stream=__import__("io").StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(C))
assert r.wasSuccessful() and r.testsRun==2""",
}


@pytest.mark.parametrize("use", USES)
def test_a_test_uses_the_responses_names_like_its_own(use: str) -> None:
    assert passed(LIBRARY, [USES[use], "assert False"]) == 0.5


def test_names_defined_by_a_test_are_invisible_to_others() -> None:
    assert passed("x = 1", ["y = x", "assert y == 1", "assert x == 1"]) == 2 / 3


@pytest.mark.parametrize(
    "test", ["assert sum(1, 2) == 3", "assert bisect(4) == 2", "assert sum(1, 2) == 3 == len([0] * 3)"]
)
def test_a_response_may_shadow_a_built_in(test: str) -> None:
    assert passed("def sum(a, b): return a + b\ndef bisect(x): return x // 2", test) == 1
