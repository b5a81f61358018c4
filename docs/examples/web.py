"""Web workers count requests: exact over all of them, and over restarts and crashes."""

import os
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import mmpc

Start = Callable[[str, list[tuple[str, str]]], object]


class Counters:
    """A page that counts for each path; the page is found by its name, which suits hundreds of paths."""

    def __init__(self, path: str) -> None:
        # A crash of the machine costs at most the last half second; a crash of workers costs nothing.
        self.pages: mmpc.PageCache[int] = mmpc.open(path, mmpc.Add(), create=True, flush_every_ms=500)
        self.known: dict[str, int] = {}

    def add(self, name: str) -> None:
        self.pages.append(self._page(name), 1)  # never a conflict: additions commute

    def all(self) -> dict[str, int]:
        return {name: self.pages.get(pid).unwrap() for name, pid in sorted(self.pages.meta().items())}

    def _page(self, name: str) -> int:
        if name not in self.known:
            self.known[name] = self.pages.meta().get(name) or self._new(name)
        return self.known[name]

    def _new(self, name: str) -> int:
        pid, key = self.pages.allocate(0)
        try:
            self.pages.cas_root_in_meta(name, None, pid)
        except mmpc.Conflict as conflict:
            self.pages.free(pid, key)
            return int(conflict.current)
        return pid


class Application:
    """A WSGI application, as gunicorn or uwsgi run it in each of their workers."""

    def __init__(self, path: str) -> None:
        self.counters = Counters(path)  # made before or after the fork: the handle survives it

    def __call__(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        self.counters.add(environ["PATH_INFO"])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{name} {count}\n".encode() for name, count in self.counters.all().items()]


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


def main(path: str = "counters") -> None:
    server = make_server("127.0.0.1", 0, Application(path), handler_class=Quiet)
    workers = []
    for _ in range(2):  # two workers share the socket, as a server that forks has them do
        worker = os.fork()
        if worker == 0:
            server.serve_forever()
        workers.append(worker)
    address = f"http://127.0.0.1:{server.server_port}"
    clients = [threading.Thread(target=fetch, args=(address, 50)) for _ in range(4)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    for worker in workers:
        os.kill(worker, 9)  # no goodbye: what was answered is counted
        os.waitpid(worker, 0)
    server.server_close()
    with mmpc.open(path, mmpc.Add()) as pages:
        print({name: pages.get(pid).unwrap() for name, pid in sorted(pages.meta().items())})


def fetch(address: str, times: int) -> None:
    for n in range(times):
        with urllib.request.urlopen(f"{address}/{'ab'[n % 2]}") as answer:
            answer.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
