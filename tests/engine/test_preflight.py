"""What is compared before a plan is deserialised, and what the refusal says."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from aula.core.errors import BundleError
from aula.engine.build import BuildOptions, build
from aula.engine.manifest import Device, Manifest, TargetEngine
from aula.engine.preflight import Card, check_plan
from aula.engine.store import Store
from tests.engine.fake_gpu import CARD, TENSORRT, fake_workshop
from tests.engine.toy import toy_model

L4 = Card("NVIDIA L4", "8.9", "13.0")
Compatibility = Literal["exact", "ampere-plus", "same-capability"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("toy")
    options = BuildOptions(target="sm90")
    store = Store(folder / "store")
    return build(toy_model(folder), store, options, make_workshop=lambda _target: fake_workshop()).manifest


def _check(manifest: Manifest, card: Card = CARD, installed: str = TENSORRT, **changes: Any) -> None:
    engine: TargetEngine = manifest.parts["model"].engines["sm90"]
    built_with = changes.pop("built_with", engine.backend_version)
    assert engine.device is not None
    device: Device = replace(engine.device, **changes)
    check_plan(manifest, replace(engine, backend_version=built_with), device, installed, card, "sm90")


def test_the_machine_it_was_built_on_is_fine(manifest: Manifest) -> None:
    _check(manifest)


def test_another_kind_of_gpu_is_named_with_the_command_for_it(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match=r"built on Fake H200 .*9\.0.*this GPU is NVIDIA L4 \(8\.9\)") as refusal:
        _check(manifest, L4)
    assert refusal.value.next_step == "build for this GPU: aula build toy --target sm89"


def test_a_card_of_another_name_is_another_card_unless_the_plan_is_for_all(manifest: Manifest) -> None:
    sister = replace(CARD, name="Fake H100")
    with pytest.raises(BundleError, match="this GPU is Fake H100"):
        _check(manifest, sister)
    _check(manifest, sister, compatibility="same-capability")


@pytest.mark.parametrize(("capability", "runs"), [("8.0", True), ("8.9", True), ("10.0", True), ("7.5", False)])
def test_ampere_plus_is_for_ampere_and_later(manifest: Manifest, capability: str, runs: bool) -> None:
    card = Card("Another", capability, "13.0")
    if runs:
        _check(manifest, card, compatibility="ampere-plus")
    else:
        with pytest.raises(BundleError, match="for Ampere and later"):
            _check(manifest, card, compatibility="ampere-plus")


@pytest.mark.parametrize(
    ("built_with", "installed", "compatible", "runs"),
    [
        ("10.12.0", "10.12.1", False, True),
        ("10.12.0", "10.13.0", False, False),
        ("10.12.0", "10.13.0", True, True),
        ("8.6.1", "10.13.0", True, True),
        ("8.6.1", "11.0.0", True, False),
        ("10.12.0", "11.0.0", True, True),
        ("10.12.0", "11.0.0", False, False),
        ("10.13.0", "10.12.0", True, False),
    ],
)
def test_releases_of_tensorrt(
    manifest: Manifest, built_with: str, installed: str, compatible: bool, runs: bool
) -> None:
    if runs:
        _check(manifest, installed=installed, built_with=built_with, version_compatible=compatible)
        return
    with pytest.raises(BundleError, match=f"built with TensorRT {built_with}; this machine has {installed}") as refusal:
        _check(manifest, installed=installed, built_with=built_with, version_compatible=compatible)
    assert f"pip install tensorrt=={built_with}" in refusal.value.next_step


def test_an_older_driver_is_refused_and_a_newer_is_not(manifest: Manifest) -> None:
    _check(manifest, replace(CARD, driver="13.2"))
    with pytest.raises(BundleError, match=r"driver for CUDA 13\.0; this one serves 12\.4"):
        _check(manifest, replace(CARD, driver="12.4"))


def test_nothing_is_read_of_a_plan_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = build(
        toy_model(tmp_path),
        Store(tmp_path / "store"),
        BuildOptions(target="sm90"),
        make_workshop=lambda _target: fake_workshop(),
    )
    monkeypatch.setattr("aula.engine.bundle.available_backends", lambda _device="cpu": ["tensorrt"])
    monkeypatch.setattr("aula.engine.bundle.runtime_version", lambda _backend: TENSORRT)
    monkeypatch.setattr("aula.engine.bundle.machine_card", lambda _device: L4)
    monkeypatch.setattr("aula.engine.bundle.open_session", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(BundleError, match="this GPU is NVIDIA L4"):
        bundle.open(profile="usual", target="sm90")
