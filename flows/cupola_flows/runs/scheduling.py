"""Runs a session's stages: each once its inputs are there, side by side where their places have room."""

import contextvars
import ctypes
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from cupola_flows.execution.places import Place
from cupola_flows.recipe.schema import Recipe
from cupola_flows.runs.session import Session
from cupola_platform.errors import CancelledError, CupolaError, DetachedError

AGAIN = 60.0
"""Seconds after which a stage that has not ended is interrupted again; until then it may be saving."""


def run_stages(session: Session, execute: Callable[[str], object]) -> None:
    """Call `execute` with each stage of a session, in order, and at the same time where inputs and room allow it.

    A stage that fails lets those that run beside it finish, and no other starts; then its error is raised. An exception
    in this thread, such as a signal's, interrupts every stage that runs and waits for it.

    One stage alone runs in this thread, as signals arrive here; several run in threads.
    """
    Schedule(session, execute).run()


class Schedule:
    """The stages of a session that wait, and those that run."""

    def __init__(self, session: Session, execute: Callable[[str], object]) -> None:
        self.session, self.execute = session, execute
        self.waiting = list(session.names)
        self.running: dict[str, threading.Thread] = {}
        self.before = stages_before(session.recipe, session.names)
        self.places = {name: session.place(name) for name in session.names}
        self.error: BaseException | None = None
        self._ended: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()

    def run(self) -> None:
        """Run them all."""
        try:
            while self.running or (self.waiting and not self.error):
                if not self.error:
                    self._start()
                if self.running:
                    self._await_one()
        except BaseException as error:
            if self.running and (ended := self._interrupt()):
                raise ended from error
            raise
        if self.error:
            raise self.error

    def _start(self) -> None:
        names = self.startable()
        if names and not self.running and (len(names) == 1 or self._is_made(names[0])):
            self.waiting.remove(names[0])
            self.execute(names[0])
            return
        for name in names:
            self.waiting.remove(name)
            context = contextvars.copy_context()  # Prefect's flow run, to which the stage belongs
            thread = threading.Thread(target=context.run, args=(self._run, name), name=f"stage {name}", daemon=True)
            self.running[name] = thread
            thread.start()

    def startable(self) -> list[str]:
        """The stages that can start now, in order. None overtakes one that waits for room in the same place, so that a
        large one does not wait forever."""
        taken: Counter[Place] = Counter()
        for name in self.running:
            taken[self.places[name]] += self._ranks(name)
        unfinished = {*self.waiting, *self.running}
        full: set[Place] = set()
        names = []
        for name in self.waiting:
            place, ranks = self.places[name], self._ranks(name)
            if self.before[name] & unfinished or place in full:
                continue
            if taken[place] and taken[place] + ranks > place.slots:
                full.add(place)
                continue
            taken[place] += ranks
            names.append(name)
        return names

    def _ranks(self, name: str) -> int:
        return self.session.recipe.stages[name].ranks(self.places[name])

    def _is_made(self, name: str) -> bool:
        with suppress(CupolaError):  # raised again where the stage runs
            return self.session.reuse(name) is not None
        return False

    def _run(self, name: str) -> None:
        error: BaseException | None = None
        try:
            self.execute(name)
        except BaseException as raised:  # noqa: BLE001  an interrupt, too; the scheduler raises it
            error = raised
        self._ended.put((name, error))

    def _await_one(self) -> None:
        name, error = self._ended.get()
        del self.running[name]
        if error and not self.error:
            self.error = error
            if self.running:
                others = ", ".join(self.running)
                self.session.display.say(f"{name} failed. What runs beside it goes on ({others}); nothing new starts.")

    def _interrupt(self) -> BaseException | None:
        """Interrupt every stage that runs, and wait for it. Returns what says most about the end of the run."""
        for thread in self.running.values():
            interrupt(thread)
        for thread in self.running.values():
            while thread.is_alive():
                thread.join(AGAIN)
                if thread.is_alive():
                    interrupt(thread)
        errors: list[BaseException] = []
        while not self._ended.empty():
            _, error = self._ended.get()
            errors += [error] if error else []
        cancelled = [error for error in errors if isinstance(error, CancelledError)]
        return next((error for error in cancelled if isinstance(error, DetachedError)), next(iter(cancelled), None))


def stages_before(recipe: Recipe, names: Sequence[str]) -> dict[str, set[str]]:
    """For each of some stages, in order: those among them that must end first."""
    before: dict[str, set[str]] = {}
    for position, name in enumerate(names):
        earlier = names[:position]
        if recipe.stages[name].keeps_its_place:
            before[name] = set(earlier)
        else:
            ordered = {other for other in earlier if recipe.stages[other].keeps_its_place}
            before[name] = (_ancestors(recipe, name) & set(names)) | ordered
    return before


def _ancestors(recipe: Recipe, name: str) -> set[str]:
    parents = recipe.parents(name)
    return parents.union(*(_ancestors(recipe, parent) for parent in parents))


def interrupt(thread: threading.Thread) -> None:
    """Raise KeyboardInterrupt in a thread, as a signal does in the main thread: once it runs Python code again."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))
