"""A session in a process of its own, which may die and come back.

A crash, a hang, a kill for want of memory or a spoilt CUDA context loses that process alone. Runs that it took along
end in a ProcessLostError, runs while it is away in a ProcessAwayError, at once: the next rung can serve both. The
process is started anew by itself (see `hosting.keeper`).

    session = open_session("onnxruntime", path, SessionOptions(hosted=Hosting(hang_s=5)))

Tensors go through shared memory, one copy each way. The engine's library is imported in its process alone.
"""

import pickle
import weakref
from collections.abc import Callable, Container
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.device_tensor import numpy_dtype
from aula.backends.hosting.keeper import Keeper
from aula.backends.hosting.line import Line
from aula.backends.hosting.records import HostChange, HostHealth, Hosting, HostStatistics
from aula.backends.hosting.runs import Runs
from aula.backends.hosting.wire import Order
from aula.backends.session import Session, Tensors
from aula.core.clock import Clock, SystemClock
from aula.core.deadlines import seconds_left
from aula.core.errors import BackendError
from aula.core.types import TensorSpec


class HostedSession(Session):
    """Unlike other sessions it is for several threads at once: their runs wait in line, first come first served.

    States stay in the process. After it was lost, or a deadline passed during a run, a session with states takes no run
    before `reset`.
    """

    keeps_states = True
    steady: Container[str] = ()
    """Inputs of which an array, once given, is never written again: given anew it is not sent anew. Whisper's decoder
    reads 22 MB of keys and values in each step that are the same all through a text."""

    def __init__(
        self, opener: Callable[[], Session], hosting: Hosting | None = None, *, clock: Clock | None = None
    ) -> None:
        """`opener` opens the session that is hosted, in the process: something pickle can name, from a module that can
        be imported there. Returns when it is loaded. Raises what the loader raises there, and BackendError where no
        process can be started or it ends while it loads."""
        hosting, clock = hosting or Hosting(), clock or SystemClock()
        self._clock = clock
        line = Line()
        self._keeper = Keeper(_order(opener, hosting), hosting, clock, line)
        # Also where nobody closes it: at the session's own end, and at the interpreter's.
        self._finalizer = weakref.finalize(self, self._keeper.close)
        try:
            loaded = self._keeper.opened()
            self.backend = loaded.backend
            self._runs = Runs(self._keeper, line, hosting, clock, stateful=bool(loaded.options.states))
            super().__init__(loaded.inputs, loaded.outputs, loaded.options)
        except BaseException:
            self._finalizer()
            raise

    def run(self, tensors: Tensors, *, deadline: float | None = None) -> dict[str, NDArray[Any]]:
        """`deadline` is a moment of the session's clock; without it that of the work which runs now holds
        (`core.deadlines`). When it passes, the caller hears so at once; the process goes on, and is ended only where it
        exceeds the limit for a hang.

        Raises BackendError for wrong tensors, DeadlineError, ProcessAwayError where nothing was tried, ProcessLostError
        where the process ended with this run or with the states that it needs, and what the engine raises.
        """
        self._check_open()
        self._check(tensors)
        if deadline is None and (left := seconds_left()) is not None:
            deadline = self._clock.now() + left
        return self._runs.run(tensors, deadline, self.steady)

    def reset(self) -> None:
        self._runs.reset()

    def settle(self) -> None:
        """Of the process that is there now; one that takes its place holds the memory of its own start."""
        self._check_open()
        self._runs.settle()

    def precisions(self) -> dict[str, int]:
        self._check_open()
        return self._runs.precisions()

    # Beyond the contract.

    @property
    def on_change(self) -> Callable[[HostChange], None] | None:
        """Called from the host's own thread whenever the process comes or goes; must return soon."""
        return self._keeper.on_change

    @on_change.setter
    def on_change(self, listener: Callable[[HostChange], None] | None) -> None:
        self._keeper.on_change = listener

    @property
    def changes(self) -> tuple[HostChange, ...]:
        """The latest 256."""
        return tuple(self._keeper.changes)

    def health(self) -> HostHealth:
        return self._keeper.health()

    def statistics(self) -> HostStatistics:
        return self._runs.statistics()

    def wait_ready(self, seconds: float | None = None) -> bool:
        """Until the process is there and loaded; False where that takes longer, or the session is closed."""
        return self._keeper.wait(seconds)

    def revive(self) -> None:
        """An operator's word: do not wait any longer, start the process now."""
        self._keeper.revive()

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this session is closed", next_step="open a new one with open_session()")

    def _fits(self, spec: TensorSpec, array: NDArray[Any]) -> bool:
        # Some engines narrow whole numbers; the process knows which, and refuses the rest.
        return spec.admits(array.shape) and np.can_cast(array.dtype, numpy_dtype(spec.dtype), "same_kind")

    def _close(self) -> None:
        self._finalizer()


def _order(opener: Callable[[], Session], hosting: Hosting) -> bytes:
    try:
        return pickle.dumps(Order(opener, hosting.memory_bytes))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BackendError(
            f"another process cannot open this engine, since it cannot be told how ({error})",
            next_step="pass a function of a module, or functools.partial of one with plain arguments",
        ) from error
