"""Runs calls in a process that may crash or hang.

A kernel that writes out of bounds ruins the whole CUDA context, and a compiler may crash its process. Such a call ends
the process; the next call gets a new one.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

#: Seconds to wait for a killed process. A process that waits in the driver may never end.
_SECONDS_TO_END = 5.0


class WorkerError(Exception):
    """A call failed; the message says how."""


class NoAnswer(WorkerError):
    """A call took too long."""


class Worker:
    """One process, started at the first call.

    Args:
        function: what to call. It must be importable, because the process is a new interpreter. If it raises, the
            process ends.
        patience: seconds that a call may take.
    """

    def __init__(self, function: Callable[..., Any], patience: float) -> None:
        self._function, self._patience = function, patience
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def ask(self, *arguments: Any) -> Any:
        """Call function(*arguments) in the process.

        Raises:
            WorkerError: the call raised, crashed, or took too long.
        """
        if self._connection is None:
            self._start()
        connection, process = self._connection, self._process
        assert connection is not None
        assert process is not None
        try:
            connection.send(arguments)
            if not connection.poll(self._patience):
                raise NoAnswer(f"no answer in {self._patience:.0f} s")
            is_answer, answer = connection.recv()
        except (EOFError, ConnectionError):
            process.join(1)
            raise self._ended(f"it ended the process (exit code {process.exitcode})") from None
        except NoAnswer:
            self.close()
            raise
        if not is_answer:
            raise self._ended(str(answer))
        return answer

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join(_SECONDS_TO_END)
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _ended(self, reason: str) -> WorkerError:
        self.close()
        return WorkerError(reason)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(self._function, theirs), daemon=True)
        self._process.start()
        theirs.close()


class Workers:
    """Several processes that share a list of calls; see `Worker`.

    Args:
        ends_at_no_answer: make no further calls after one that took too long.
    """

    def __init__(
        self, function: Callable[..., Any], patience: float, count: int, ends_at_no_answer: bool = False
    ) -> None:
        self._workers = [Worker(function, patience) for _ in range(count)]
        self._ends_at_no_answer, self._has_ended = ends_at_no_answer, False

    def ask_all(self, questions: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """The results in order; a WorkerError for a call that failed, None for a call that was not made."""
        free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            free.put(worker)

        def answer(question: tuple[Any, ...]) -> Any:
            worker = free.get()
            try:
                return None if self._has_ended else worker.ask(*question)
            except WorkerError as error:
                self._has_ended |= self._ends_at_no_answer and isinstance(error, NoAnswer)
                return error
            finally:
                free.put(worker)

        threads = concurrent.futures.ThreadPoolExecutor(len(self._workers))
        try:
            yield from threads.map(answer, questions)
        finally:
            threads.shutdown(cancel_futures=True)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()


def _answer(function: Callable[..., Any], connection: Connection) -> None:
    """The loop of the process. It ends when a call raises, or when the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process, but the parent ends this one
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = function(*arguments)
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            connection.send((False, f"{type(error).__name__}: {first_line[:200]}"))
            return
        connection.send((True, answer))
