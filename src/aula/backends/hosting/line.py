"""A lock whose waiters are served in the order in which they came, each until its own moment."""

import threading
from collections import deque


class Line:
    """`enter`, then `leave`. For any number of threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    def enter(self, seconds: float | None = None) -> bool:
        """Wait for one's turn, at most so many seconds; False where it did not come."""
        with self._mutex:
            if not self._taken:
                self._taken = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            came = turn.acquire(timeout=-1 if seconds is None else max(0.0, seconds))
        except BaseException:  # an interrupt must not leave a place in the line that nobody takes
            if not self._withdraw(turn):
                self.leave()
            raise
        return came or not self._withdraw(turn)

    def leave(self) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False

    @property
    def taken(self) -> bool:
        return self._taken

    @property
    def length(self) -> int:
        """Those that wait, without the one whose turn it is."""
        return len(self._waiting)

    def _withdraw(self, turn: threading.Lock) -> bool:
        """False where the turn came just now."""
        with self._mutex:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return True
        return False
