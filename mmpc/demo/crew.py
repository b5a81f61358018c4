"""The workers: started, fed, killed, replaced.

The parent holds the list of files and gives each worker IN_HAND of them over a socket of its own, so that a
worker that dies, at whatever instruction, can neither keep a lock nor spoil a queue: its socket ends, what
it had answered is read, what it had in hand goes back on the list, another worker is forked. A worker whose
parent dies reads the end of its socket and ends as well.

Kills hit at random times and never stop; but who works on a file that was interrupted PATIENCE times is
spared, so that the job ends however often they come.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import selectors
import signal
import socket
import struct
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from .sources import Tree, count_words

IN_HAND = 2  # one file in work, one waiting
PATIENCE = 8  # interruptions of one file before its worker is spared
STALL = 120.0  # seconds without a finished file that end the job
CRASHES = 20  # deaths that were not planned, after which the job is given up

JOB = struct.Struct("<I")  # file id
DONE = struct.Struct("<IIQQ")  # file id, postings, nanoseconds counting words, nanoseconds writing them
LONGEST = 32_768  # of a message: DONE, or the traceback of a worker that failed, which is never as short


class Sink(Protocol):
    """What a worker writes to: a store that takes the postings of one file at a time."""

    def add(self, file_id: int, counts: Mapping[str, int]) -> None: ...
    def close(self) -> None: ...


class JobFailed(Exception):
    """A worker raised an error, workers keep crashing, or nothing moves any more."""


@dataclass
class Tally:
    """What the parent saw."""

    workers: int
    files: int = 0
    postings: int = 0
    killed: int = 0
    interrupted: int = 0
    """Files that a killed worker was at; each is done again."""
    crashed: list[str] = field(default_factory=list)
    """How workers ended that nobody killed."""
    seconds: float = 0.0
    counting_ns: int = 0
    writing_ns: int = 0


@dataclass(eq=False)
class Worker:
    """A child process as its parent knows it."""

    pid: int
    channel: socket.socket
    """The parent's end. One message a packet, so that a death cuts no message in two."""
    in_hand: deque[int] = field(default_factory=deque)
    """Files it was given and has not answered for, oldest first."""


class Crew:
    """Some workers and the list of files they work off; used once."""

    def __init__(
        self,
        tree: Tree,
        attach: Callable[[], Sink],
        *,
        workers: int,
        kill_every: float = 0.0,
        seed: int = 0,
        progress: Callable[[Tally], None] = lambda tally: None,
    ) -> None:
        """``attach`` is called in each worker; ``kill_every`` is the mean time between kills, 0 for none."""
        self._tree = tree
        self._attach = attach
        self._size = workers
        self._kill_every = kill_every
        self._random = random.Random(seed)
        self._progress = progress
        self._workers: list[Worker] = []
        self._selector = selectors.PollSelector()  # poll: has no descriptor that a fork would share
        self._todo: deque[int] = deque()
        self._interruptions: Counter[int] = Counter()
        self._tally = Tally(workers)

    def run(self, file_ids: Iterable[int]) -> Tally:
        """Do these files, each until a worker answered for it. Leaves no process behind. Raises JobFailed."""
        files = list(file_ids)
        self._random.shuffle(files)
        self._todo.extend(files)
        started = time.perf_counter()
        try:
            self._work_off(len(files))
            self._tally.seconds = time.perf_counter() - started
            self._dismiss()
        finally:
            self._end_all()
        return self._tally

    # ---- the parent's loop

    def _work_off(self, total: int) -> None:
        moved = time.monotonic()
        kill_at = self._next_kill(moved)
        while self._tally.files < total:
            before = self._tally.files
            self._staff()
            now = time.monotonic()
            for key, _ in self._selector.select(min(max(kill_at - now, 0.0), 1.0)):
                self._hear(key.data)
            now = time.monotonic()
            if now >= kill_at:
                self._kill_one()
                kill_at = self._next_kill(now)
            if self._tally.files > before:
                moved = now
                self._progress(self._tally)
            elif now - moved > STALL:
                raise JobFailed(
                    f"nothing finished for {STALL:.0f} s; in hand: {', '.join(self._all_in_hand())}"
                )

    def _next_kill(self, now: float) -> float:
        return now + self._random.uniform(0, 2 * self._kill_every) if self._kill_every else float("inf")

    def _all_in_hand(self) -> list[str]:
        return sorted(self._tree.paths[n] for worker in self._workers for n in worker.in_hand)

    def _staff(self) -> None:
        """Replace who is gone, and see that everybody has work; near the end, one file each."""
        while self._todo and len(self._workers) < self._size:
            self._feed(self._start(), 1)
        for worker in self._workers:
            self._feed(worker, IN_HAND if len(self._todo) > self._size else 1)

    def _feed(self, worker: Worker, files: int) -> None:
        while self._todo and len(worker.in_hand) < files:
            file_id = self._todo.popleft()
            worker.in_hand.append(file_id)
            try:
                worker.channel.send(JOB.pack(file_id))
            except OSError:  # it is dead; its socket will say so, and the file goes back
                return

    def _hear(self, worker: Worker) -> None:
        """Take one message of a worker: a finished file, its last words, or its end."""
        try:
            message = worker.channel.recv(LONGEST)
        except ConnectionResetError:  # it died with work unread; what it answered before comes next
            return
        if not message:
            self._bury(worker)
        elif len(message) == DONE.size:
            file_id, postings, counting_ns, writing_ns = DONE.unpack(message)
            worker.in_hand.remove(file_id)
            tally = self._tally
            tally.files += 1
            tally.postings += postings
            tally.counting_ns += counting_ns
            tally.writing_ns += writing_ns
        else:
            raise JobFailed(f"a worker failed:\n{message.decode(errors='replace')}")

    def _kill_one(self) -> None:
        """Kill a worker that has work, unless that work was interrupted too often already."""
        candidates = [
            worker
            for worker in self._workers
            if worker.in_hand and all(self._interruptions[n] < PATIENCE for n in worker.in_hand)
        ]
        if candidates:
            victim = self._random.choice(candidates)
            os.kill(victim.pid, signal.SIGKILL)
            while victim in self._workers:  # what it answered before it died counts
                self._hear(victim)

    # ---- the life of a worker

    def _start(self) -> Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._be_a_worker(theirs)
        theirs.close()
        worker = Worker(pid, ours)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _be_a_worker(self, channel: socket.socket) -> NoReturn:
        """The child: answers for files until its socket ends. Never returns into the parent's code."""
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
            gc.disable()  # a worker makes no cycles, and lives for seconds
            for worker in self._workers:  # a socket held here would outlive the parent
                worker.channel.close()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent is gone
                work(channel, self._tree, self._attach)
            status = 0
        except BaseException:
            channel.send(traceback.format_exc().encode()[-LONGEST:])
        finally:
            os._exit(status)

    def _bury(self, worker: Worker) -> None:
        """Collect a worker that ended; what it had in hand goes back. Raises JobFailed after CRASHES."""
        self._selector.unregister(worker.channel)
        self._workers.remove(worker)
        worker.channel.close()
        code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        tally = self._tally
        if worker.in_hand:
            tally.interrupted += 1
            self._interruptions[worker.in_hand[0]] += 1
            self._todo.extendleft(reversed(worker.in_hand))
        if code == -signal.SIGKILL:
            tally.killed += 1
        elif code:
            tally.crashed.append(signal.Signals(-code).name if code < 0 else f"exit {code}")
            if len(tally.crashed) >= CRASHES:
                raise JobFailed(f"{CRASHES} workers crashed: {', '.join(sorted(set(tally.crashed)))}")

    def _dismiss(self) -> None:
        """Tell everybody that there is no more work, and wait for their ends."""
        deadline = time.monotonic() + STALL
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.channel.shutdown(socket.SHUT_WR)
        while self._workers:
            for key, _ in self._selector.select(1.0):
                self._hear(key.data)
            if time.monotonic() > deadline:
                raise JobFailed(
                    f"{len(self._workers)} workers did not detach from the store within {STALL:.0f} s"
                )

    def _end_all(self) -> None:
        for worker in self._workers:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            worker.channel.close()
        self._workers.clear()
        self._selector.close()


def work(channel: socket.socket, tree: Tree, attach: Callable[[], Sink]) -> None:
    """A worker: for each file id that comes in, count the words, write the postings, answer."""
    sink = attach()
    while job := channel.recv(JOB.size):
        (file_id,) = JOB.unpack(job)
        started = time.perf_counter_ns()
        counts = count_words(tree.read(file_id))
        counted = time.perf_counter_ns()
        sink.add(file_id, counts)
        written = time.perf_counter_ns()
        channel.send(DONE.pack(file_id, len(counts), counted - started, written - counted))
    sink.close()
