"""A client that takes next to nothing from the server beside which it runs: prepared bytes, plain sockets, one thread.

    python -m benchmarks.kserve.asking PORT CONNECTIONS SECONDS REQUEST_FILE

prints one line of JSON: milliseconds of requests at the 50th and 99th hundredth, how many a second, and how many all
told, those of a first second too, which only warms up.
"""

import contextlib
import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

WARM_SECONDS = 1.0


@dataclass
class _Line:
    """One connection, with one request under way."""

    sock: socket.socket
    sent: float = 0.0
    came: bytearray = field(default_factory=bytearray)
    length: int = -1

    def ask(self, request: bytes) -> None:
        self.came.clear()
        self.length = -1
        self.sent = time.perf_counter()
        self.sock.sendall(request)

    def hear(self) -> bool:
        """Whether the answer is whole."""
        chunk = self.sock.recv(1 << 18)
        if not chunk:
            raise ConnectionError("the server closed the connection")
        self.came += chunk
        if self.length < 0:
            end = self.came.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = bytes(self.came[:end]).lower()
            if not head.startswith(b"http/1.1 200"):
                raise RuntimeError(f"answered {bytes(self.came[:400])!r}")
            self.length = end + 4 + int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return len(self.came) >= self.length


def ask(port: int, connections: int, seconds: float, request: bytes) -> dict[str, float]:
    times: list[float] = []
    answered = 0
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as opened:
        for _ in range(connections):
            sock = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line = _Line(sock)
            selector.register(sock, selectors.EVENT_READ, line)
            line.ask(request)
        start = time.perf_counter() + WARM_SECONDS
        until = start + seconds
        left = connections
        while left:
            for key, _ in selector.select(10):
                line = key.data
                if not line.hear():
                    continue
                answered += 1
                now = time.perf_counter()
                if line.sent >= start and now < until:
                    times.append(1e3 * (now - line.sent))
                if now < until:
                    line.ask(request)
                else:
                    selector.unregister(line.sock)
                    line.sock.close()
                    left -= 1
    times.sort()
    return {
        "p50_ms": round(times[len(times) // 2], 3),
        "p99_ms": round(times[int(0.99 * len(times))], 3),
        "a_second": round(len(times) / seconds),
        "all": answered,
    }


if __name__ == "__main__":
    print(json.dumps(ask(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]).read_bytes())))
