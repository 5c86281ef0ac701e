import os
import socket
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from numpy.typing import NDArray

from aula.backends.hosting.memory import ALIGNMENT, LEAST, SharedMemory, lay_out
from aula.backends.hosting.records import Hosting
from aula.backends.hosting.wire import Failure, Kind, Layout, Loaded, Message, Wire, decode, encode
from aula.backends.session import SessionOptions, StatePair
from aula.core import errors
from aula.core.errors import AulaError, BackendError, BundleError
from aula.core.types import TensorSpec

_DTYPES = ("float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool")
arrays = st.sampled_from(_DTYPES).flatmap(
    lambda dtype: np_st.arrays(np.dtype(dtype), np_st.array_shapes(min_dims=0, min_side=0, max_side=40))
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), arrays, max_size=3), max_size=4))
def test_what_one_side_writes_the_other_reads(runs: list[dict[str, NDArray[Any]]]) -> None:
    writer = SharedMemory.create()
    reader = SharedMemory.attach(os.dup(writer.descriptor))
    for tensors in runs:
        places, size = lay_out(tensors)
        assert all(place.offset % ALIGNMENT == 0 for place in places)
        writer.grow(size)
        for place, array in zip(writer.arrays(places), tensors.values(), strict=True):
            place[...] = array
        told = decode(encode(Layout(places, writer.bytes)), Layout)
        reader.follow(told.bytes)
        for read, array in zip(reader.arrays(told.places), tensors.values(), strict=True):
            np.testing.assert_array_equal(read, array)
            assert read.dtype == array.dtype
    writer.close()
    writer.close()
    reader.close()


def test_memory_grows_and_arrays_stay_good() -> None:
    memory = SharedMemory.create()
    assert memory.bytes == LEAST
    (small,) = memory.arrays(lay_out({"x": np.zeros(4)})[0])
    small[:] = 7
    memory.grow(LEAST + 1)
    assert memory.bytes == 2 * LEAST
    memory.grow(5)
    assert memory.bytes == 2 * LEAST, "it never shrinks"
    memory.close()
    assert small.tolist() == [7] * 4


def test_too_much_is_refused_and_what_was_there_stays() -> None:
    memory = SharedMemory.create()
    for beyond in (1 << 62, 1 << 70):
        with pytest.raises(BackendError, match=r"no .* bytes of shared memory"):
            memory.grow(beyond)
    assert memory.bytes == LEAST == os.fstat(memory.descriptor).st_size
    memory.close()


def test_bfloat16_goes_over_and_python_objects_do_not() -> None:
    import ml_dtypes

    memory = SharedMemory.create()
    places, _ = lay_out({"x": np.ones(3, ml_dtypes.bfloat16)})
    (array,) = memory.arrays(decode(encode(Layout(places, 0)), Layout).places)
    assert array.dtype == ml_dtypes.bfloat16
    memory.close()
    for odd in (np.array(["a"], dtype=object), np.zeros(2, dtype=[("a", "f4")])):
        with pytest.raises(BackendError, match="cannot be shared"):
            lay_out({"x": odd})


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(1, 40))
def test_messages_come_whole_however_they_are_cut(bodies: list[bytes], piece: int) -> None:
    sender, receiver = socket.socketpair()
    with sender, receiver:
        wire = Wire(receiver)
        sent = [Message(n, Kind.RUN, body, bool(n % 2)) for n, body in enumerate(bodies)]
        stream = b"".join(message.packed() for message in sent)
        got = []
        for start in range(0, len(stream), piece):
            sender.sendall(stream[start : start + piece])
            try:
                got.append(wire.receive(0.0))
            except TimeoutError:
                continue
        sender.close()
        while (message := wire.receive(10.0)) is not None:
            got.append(message)
        assert got == sent


def test_a_description_comes_home_as_it_left() -> None:
    options = SessionOptions(
        threads=2,
        states=(StatePair("a", "b", 1.5, in_place=True),),
        state_shapes={"a": (1, 2)},
        bounds={"x": ((1, 4), (8, 8))},
        hosted=Hosting(hang_s=3),
    )
    loaded = Loaded("odd", (TensorSpec("x", "float32", ("n", 8)),), (), options)
    assert decode(encode(loaded), Loaded) == loaded


def _own_errors() -> list[type[AulaError]]:
    kinds = [getattr(errors, name) for name in dir(errors)]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, AulaError)]


@pytest.mark.parametrize("kind", [kind for kind in _own_errors() if kind is not errors.OverloadError])
def test_an_error_of_ours_comes_home_as_it_was(kind: type[AulaError]) -> None:
    raised = kind("what", next_step="next", available=("a", "b"))
    home = decode(encode(Failure.of(raised)), Failure).error()
    assert (type(home), str(home), home.available) == (kind, str(raised), raised.available)


def test_other_errors_become_backend_errors() -> None:
    overload = errors.OverloadError("full", reason="queue", retry_after_s=1.0, next_step="later")
    for raised in (overload, ZeroDivisionError("a defect"), KeyError("x")):
        assert type(Failure.of(raised).error()) is BackendError
    assert type(Failure.of(MemoryError()).error()) is errors.ProcessMemoryError
    for name in ("annotations", "Sequence", "Exception", "no such"):
        assert type(Failure(name, "what", "next").error()) is BackendError
    assert type(Failure.of(BundleError("a", next_step="b")).error()) is BundleError
