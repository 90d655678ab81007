"""Who runs next: threads that pass a baton, and asynchronous operations that happen late.

Exactly one task (a partition of warps) runs at a time. At every switch point the seeded generator decides which
operations under way happen now, and which task goes on. A seed also draws a temper: how eager operations are to
happen, and how long a task keeps the baton. The extremes of both bring out most mistakes: operations that happen only
when nobody can go on without them, and a task that runs far ahead of the others.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from .errors import DeadlockError, source_line


class Operation:
    """Something asynchronous under way: `happen` is called once; operations of the same queue happen in order."""

    def __init__(self, happen: Callable[[], None], queue: Hashable = None) -> None:
        self.happen = happen
        self.queue = queue


class _Abandoned(BaseException):
    """Ends the other tasks when one has failed."""


class Task:
    """A thread that runs only while it holds the baton."""

    def __init__(self, name: str, body: Callable[[], Any]) -> None:
        self.name = name
        self.body = body
        self.result: Any = None
        self.is_done = False
        #: None, or what it waits for: (a condition, what to say of it, the source line)
        self.waits_for: tuple[Callable[[], bool], Callable[[], str], str] | None = None
        self.baton = threading.Semaphore(0)

    def has_ended(self) -> bool:
        return self.is_done

    def its_end(self) -> str:
        return f"the end of {self.name}"

    def can_run(self) -> bool:
        return not self.is_done and (self.waits_for is None or self.waits_for[0]())


class Schedule:
    """Tasks, operations under way, and the generator that orders both.

    Attributes:
        current: the task that holds the baton.
    """

    current: Task

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._eagerness = self._random.choice([0.0, 0.05, 0.3, 0.9])
        self._constancy = self._random.choice([0.0, 0.5, 0.9])
        self._tasks: list[Task] = []
        self._threads: list[threading.Thread] = []
        self._operations: list[Operation] = []
        self._failure: BaseException | None = None
        self._finished = threading.Semaphore(0)

    def shuffled(self, items: list[Any]) -> list[Any]:
        """The same items in a random order."""
        return self._random.sample(items, len(items))

    def run(self, tasks: Sequence[Task]) -> None:
        """Run tasks, and those that they start, to their end; raises what the first of them raised."""
        for task in tasks:
            self.start(task)
        self._pass_on()
        self._finished.acquire()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        if self._failure is not None:
            raise self._failure

    def start(self, task: Task) -> None:
        """A new task, which runs when its turn comes."""
        thread = threading.Thread(target=self._live, args=(task,), name=task.name, daemon=True)
        self._tasks.append(task)
        self._threads.append(thread)
        thread.start()

    def add(self, operation: Operation) -> None:
        """Something is under way, and happens at a later switch point."""
        self._operations.append(operation)

    def finish(self, operations: list[Operation]) -> None:
        """Make these operations, and those before them in their queues, happen now."""
        for operation in operations:
            while operation in self._operations:
                first = next(o for o in self._operations if o is operation or _same_queue(o, operation))
                self._happen(first)

    def is_alone(self) -> bool:
        """Whether nothing but the current task can change anything."""
        return len(self._tasks) == 1 and not self._operations

    def switch(self) -> None:
        """A point at which others may go on, and operations happen."""
        self._let_things_happen()
        if len(self._tasks) > 1 and self._random.random() >= self._constancy:
            self._yield(self.current)

    def wait(self, condition: Callable[[], bool], reason: Callable[[], str]) -> None:
        """Go on once the condition holds."""
        self.switch()
        if condition():
            return
        task = self.current
        task.waits_for = (condition, reason, source_line())
        self._yield(task)
        task.waits_for = None

    def _live(self, task: Task) -> None:
        task.baton.acquire()
        try:
            if self._failure is None:
                task.result = task.body()
        except _Abandoned:
            pass
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            task.is_done = True
            self._tasks.remove(task)
            self._pass_on()

    def _yield(self, task: Task) -> None:
        following = self._next()
        if following is not task:
            if following is not None:
                self._hand_to(following)
                task.baton.acquire()
            if self._failure is not None:
                raise _Abandoned

    def _pass_on(self) -> None:
        following = None
        try:
            following = self._next() if self._failure is None else None
        except BaseException as error:  # an operation that happened on the way
            self._failure = error
        if following is None and self._tasks:
            # Something failed: wake the others one after the other; each ends by itself, and passes on.
            following = self._tasks[0]
        if following is None:
            self._finished.release()
        else:
            self._hand_to(following)

    def _hand_to(self, task: Task) -> None:
        self.current = task
        task.baton.release()

    def _next(self) -> Task | None:
        """A task that can run, after making operations happen as long as there is none; None at the end."""
        while self._tasks:
            runnable = [task for task in self._tasks if task.can_run()]
            if runnable:
                return self._random.choice(runnable)
            if not self._operations:
                self._failure = self._failure or DeadlockError(self._who_waits())
                return None
            self._happen(self._random.choice(self._heads()))
        return None

    def _let_things_happen(self) -> None:
        while self._operations and self._random.random() < self._eagerness:
            self._happen(self._random.choice(self._heads()))

    def _heads(self) -> list[Operation]:
        """Operations before which nothing waits in their queue."""
        heads: dict[Hashable, Operation] = {}
        for operation in self._operations:
            heads.setdefault(operation if operation.queue is None else operation.queue, operation)
        return list(heads.values())

    def _happen(self, operation: Operation) -> None:
        self._operations.remove(operation)
        operation.happen()

    def _who_waits(self) -> str:
        waiting = (
            f"{task.name} waits for {task.waits_for[1]()} at {task.waits_for[2]}"
            for task in self._tasks
            if task.waits_for is not None
        )
        return "deadlock: " + "; ".join(waiting)


def _same_queue(a: Operation, b: Operation) -> bool:
    return a.queue is not None and a.queue == b.queue
