"""Memory beside a session's own: copies that fit, with room left, and those that do not."""

from collections.abc import Iterator

import numpy as np
import pytest

from aula.backends.cuda import Cuda
from aula.backends.device_memory import DeviceMemory
from aula.core.errors import BackendError
from tests.backends.fake_cuda import FakeCuda


@pytest.fixture
def memory() -> Iterator[DeviceMemory]:
    gpu = FakeCuda()
    cuda = Cuda(gpu)
    made = DeviceMemory(cuda, cuda.stream())
    yield made
    made.close()
    assert gpu.held() == {"streams": 1}


def test_fewer_lines_leave_the_others_as_they_are(memory: DeviceMemory) -> None:
    few, many = memory.mirror((2, 3, 4), "float16"), memory.mirror((2, 5, 4), "float16")
    few.array[...] = np.arange(24).reshape(2, 3, 4)
    many.array[...] = 99
    few.up()
    many.up()
    memory.copy(many.tensor, few.tensor)
    many.down()
    memory.wait()
    np.testing.assert_array_equal(many.array[:, :3], few.array)
    assert (many.array[:, 3:] == 99).all()


def test_a_part_comes_down_alone(memory: DeviceMemory) -> None:
    whole = memory.mirror((3, 2), "int32")
    whole.array[...] = 7
    whole.up()
    memory.wait()
    whole.array[...] = 0
    whole.down(1, 1)
    memory.wait()
    assert whole.array.tolist() == [[0, 0], [7, 7], [0, 0]]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 3, 4), "float32"), ((2, 6, 4), "float16"), ((2, 3, 5), "float16"), ((4, 3, 4), "float16")]
)
def test_what_does_not_fit_is_refused(memory: DeviceMemory, shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(BackendError, match="does not fit into float16"):
        memory.copy(memory.tensor((2, 5, 4), "float16"), memory.tensor(shape, dtype))
