"""A bundle of plans on this machine: what is compared and checked, in which order, and how its profiles are opened."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.selecting import SelectingSession
from aula.backends.session import SessionOptions, StatePair
from aula.core.errors import BackendError, BundleError, VerificationError
from aula.engine import bundle as bundles
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.manifest import sealed
from aula.engine.preflight import Card, check_plan
from aula.engine.recipe import Profile, Size
from aula.engine.store import Store
from tests.engine.fake_gpu import CARD, TENSORRT, FakeDeviceSession, fake_workshop
from tests.engine.toy import WEIGHT, toy_model

PROFILES = (Profile("one", {"rows": Size(1, 1, 1)}), Profile("many", {"rows": Size(1, 8, 16)}))


class Machine:
    """This machine, with a card and TensorRT. `opened` notes every plan that a runtime was given."""

    def __init__(self) -> None:
        self.card, self.version = CARD, TENSORRT
        self.opened: list[tuple[str, SessionOptions]] = []
        self.sessions: list[FakeDeviceSession] = []

    def open(self, backend: str, path: Path, options: SessionOptions) -> FakeDeviceSession:
        self.opened.append((backend, options))
        self.sessions.append(FakeDeviceSession(path, options))
        return self.sessions[-1]

    def card_of(self, number: int) -> Card:
        return replace(self.card, number=number)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine()
    monkeypatch.setattr(bundles, "available_backends", lambda _device="cpu": ["tensorrt"])
    monkeypatch.setattr(bundles, "runtime_version", lambda _backend: made.version)
    monkeypatch.setattr(bundles, "machine_card", made.card_of)
    monkeypatch.setattr(bundles, "open_session", made.open)
    yield made
    for session in made.sessions:
        session.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build(
        toy_model(tmp_path, profiles=PROFILES),
        Store(tmp_path / "store"),
        BuildOptions(target="sm90"),
        make_workshop=lambda _target: fake_workshop(),
    )


def _changed(bundle: Bundle, **engine: Any) -> Bundle:
    part = bundle.part()
    changed = replace(part, engines={"sm90": replace(part.engines["sm90"], **engine)})
    return Bundle(sealed(replace(bundle.manifest, parts={"model": changed})), bundle.files)


def _x(rows: int) -> np.ndarray[Any, Any]:
    return np.linspace(-1, 1, 3 * rows, dtype=np.float32).reshape(rows, 3)


def test_a_profile_is_opened_alone(bundle: Bundle, machine: Machine) -> None:
    with bundle.open(profile="many", target="sm90", device=1) as session:
        np.testing.assert_allclose(session.run({"x": _x(5)})["y"], _x(5) @ WEIGHT, atol=2e-2)
        with pytest.raises(BackendError, match="serves 1 to 16"):
            session.run({"x": _x(17)})
    ((backend, options),) = machine.opened
    assert backend == "tensorrt"
    assert options.device == 1
    assert options.bounds == {"x": ((1, 16), (3, 3))}
    assert options.precision == "fp16"
    assert options.digest == bundle.engine(target="sm90").plans["many"]


def test_all_profiles_are_one_session(bundle: Bundle, machine: Machine) -> None:
    with bundle.open(target="sm90") as session:
        assert isinstance(session, SelectingSession)
        for rows in (1, 2, 16):
            np.testing.assert_allclose(session.run({"x": _x(rows)})["y"], _x(rows) @ WEIGHT, atol=2e-2)
        with pytest.raises(BackendError, match="no profile of this engine holds"):
            session.run({"x": _x(17)})
    digests = [options.digest for _, options in machine.opened]
    plans = bundle.engine(target="sm90").plans
    assert digests == [plans["one"], plans["many"]]
    assert all(session._closed for session in machine.sessions)


def test_states_stay_in_one_engine(bundle: Bundle, machine: Machine) -> None:
    stateful = _changed(bundle, states=(StatePair("x", "y"),))
    with pytest.raises(BundleError, match="its states stay in one engine") as refusal:
        stateful.open(target="sm90")
    assert refusal.value.available == ("one", "many")
    assert machine.opened == []


def test_a_profile_that_is_not_there_is_named(bundle: Bundle, machine: Machine) -> None:
    with pytest.raises(BundleError, match="no profile 'several'") as refusal:
        bundle.open(profile="several", target="sm90")
    assert refusal.value.available == ("one", "many")
    assert machine.opened == []


def test_another_target_is_refused_with_the_command_that_builds_it(bundle: Bundle, machine: Machine) -> None:
    with pytest.raises(BundleError, match="no engine for sm89") as refusal:
        bundle.open(target="sm89")
    assert refusal.value.available == ("sm90",)
    assert "--target sm89" in refusal.value.next_step


@pytest.mark.parametrize("profile", [None, "one"])
def test_one_changed_byte_is_refused_before_a_runtime_sees_it(
    bundle: Bundle, machine: Machine, profile: str | None
) -> None:
    path = bundle.model_file("model", "sm90", "one")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match="has changed"):
        bundle.open(profile=profile, target="sm90")
    assert machine.opened == []


def test_a_plan_that_is_gone_is_refused(bundle: Bundle, machine: Machine) -> None:
    bundle.model_file("model", "sm90", "many").unlink()
    with pytest.raises(VerificationError):
        bundle.open(profile="many", target="sm90")
    assert machine.opened == []


@pytest.mark.parametrize(
    ("card", "version", "said"),
    [
        (Card("NVIDIA L4", "8.9", "13.0"), TENSORRT, "this GPU is NVIDIA L4"),
        (CARD, "10.12.0", r"built with TensorRT 8\.6\.1; this machine has 10\.12\.0"),
        (CARD, "unknown", "this machine has unknown"),
        (replace(CARD, driver="11.8"), TENSORRT, r"CUDA 13\.0; this one serves 11\.8"),
    ],
)
def test_another_machine_is_refused_before_a_byte_is_read(
    bundle: Bundle, machine: Machine, card: Card, version: str, said: str
) -> None:
    machine.card, machine.version = card, version
    bundle.model_file("model", "sm90", "one").write_bytes(b"whatever")
    with pytest.raises(BundleError, match=said):
        bundle.open(target="sm90")
    assert machine.opened == []


def test_without_tensorrt_opening_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.util import find_spec

    if find_spec("tensorrt") or find_spec("tensorrt_lean"):
        pytest.skip("TensorRT is installed here")
    with pytest.raises(BackendError, match="needs the package tensorrt, which is not installed") as refusal:
        bundle.open(target="sm90")
    assert "aula[gpu]" in refusal.value.next_step


def test_a_card_for_which_nothing_is_built_is_sent_to_the_cpu(bundle: Bundle) -> None:
    engine = bundle.engine(target="sm90")
    assert engine.device is not None
    with pytest.raises(BundleError, match=r"this GPU is NVIDIA A100 \(8\.0\)") as refusal:
        check_plan(bundle.manifest, engine, engine.device, TENSORRT, Card("NVIDIA A100", "8.0", "13.0"), "sm90")
    assert "--target cpu" in refusal.value.next_step
    assert "sm90" not in refusal.value.next_step


@pytest.mark.parametrize("driver", ["", "new", "9" * 5000, "13", "13.0.1"])
def test_a_driver_that_is_no_number_is_not_read(bundle: Bundle, driver: str) -> None:
    from aula.engine.manifest import read_manifest, write_manifest

    device = bundle.engine(target="sm90").device
    assert device is not None
    forged = _changed(bundle, device=replace(device, driver=driver)).manifest
    with pytest.raises(BundleError):
        read_manifest(write_manifest(forged), "forged")
