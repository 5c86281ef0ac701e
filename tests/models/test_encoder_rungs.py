"""The encoder's rungs on a machine with a GPU: a store's engine for that card, played by the processor's own."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aula.backends.gpus import Gpu
from aula.core.errors import BundleError
from aula.core.settings import Settings
from aula.core.types import Capability, Context, Why
from aula.engine.manifest import Manifest, sealed
from aula.engine.recipe import WHOLE
from aula.engine.store import Store
from aula.models import encoder_rungs, raw_bundles
from aula.models.bert import SentenceEncoder
from aula.runtime import open_runtime

EMBED, UNDERSTAND = Capability.EMBED, Capability.UNDERSTAND
CARD = Gpu(0, "GPU-1", "NVIDIA L4", "8.9", "580.1", 24 * 2**30)


@pytest.fixture(scope="module")
def built(home: Path) -> Iterator[Store]:
    """A store with MiniLM's bundle, for the processor and, by name alone, for an L4."""
    SentenceEncoder.minilm(Settings({"home": str(home)})).close()
    store = Store(home / "engines")
    manifest = store.open("minilm").manifest
    part = manifest.parts[WHOLE]
    both = replace(part, engines={**part.engines, "sm89": replace(part.engines["cpu"])})
    store.publish(_named(replace(manifest, parts={WHOLE: both}), "minilm-00000000000000aa"))
    other = replace(both, sources=dict.fromkeys(part.sources, "0" * 64))
    elsewhere = Store(home / "other" / "engines")
    elsewhere.folder.mkdir(parents=True)
    elsewhere.files.symlink_to(store.files)
    elsewhere.publish(_named(replace(manifest, parts={WHOLE: other}), "minilm-00000000000000bb"))
    yield store
    store.remove("minilm-00000000000000aa")


def _named(manifest: Manifest, key: str) -> Manifest:
    return sealed(replace(manifest, key=key))


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (encoder_rungs, raw_bundles):
        monkeypatch.setattr(module, "list_gpus", lambda: (CARD,))


def settings(home: Path, **more: str | int) -> Settings:
    values = {"home": str(home), "whisper": "none", "isolate": "never"}
    return Settings({**values, **{name.replace("__", "."): value for name, value in more.items()}})


async def test_the_gpu_serves_first_and_the_processor_below_it(built: Store, home: Path) -> None:
    texts = ["what is a force", "why does a book stay on the table"]
    async with open_runtime(settings(home)) as runtime:
        best = await runtime.submit(EMBED, texts, Context())
        understood = await runtime.submit(UNDERSTAND, texts[0], Context())
        runtime.override(EMBED, "minilm")
        lower = await runtime.submit(EMBED, texts, Context())
        loads = {load.device: dict(load.loaded) for load in await runtime.memory()}
    assert (best.rung, best.why, understood.rung) == ("minilm@gpu0", Why.BEST, "minilm+intents@gpu0")
    assert lower.rung == "minilm"
    np.testing.assert_allclose(best.value, lower.value, atol=1e-5)
    engine = built.open("minilm-00000000000000aa").engine(target="sm89")
    assert (
        loads["gpu0"]["minilm@gpu0"] == loads["gpu0"]["minilm+intents@gpu0"] == sum(file.bytes for file in engine.files)
    )


async def test_where_the_card_has_no_room_the_processor_serves(built: Store, home: Path) -> None:
    assert built
    async with open_runtime(settings(home, memory__gpu_mb=1)) as runtime:
        outcome = await runtime.submit(EMBED, ["why"], Context())
        rung = next(one for one in runtime.statistics().rungs if one.name == "minilm@gpu0")
    assert (outcome.rung, outcome.why) == ("minilm", Why.OUT_OF_ORDER)
    assert rung.unavailable is not None
    assert "MiB on gpu0" in rung.unavailable


def test_a_bundle_of_other_weights_serves_nobody(built: Store, home: Path) -> None:
    assert built
    rungs = encoder_rungs.encoder_rungs(settings(home / "other"), lambda *_: None)
    with pytest.raises(BundleError, match="another checkpoint"):
        rungs[1].load()


def test_without_a_card_or_an_engine_for_it_there_is_the_processor_alone(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names(folder: Path) -> list[str]:
        return [rung.info.name for rung in encoder_rungs.encoder_rungs(settings(folder), lambda *_: None)]

    assert names(tmp_path) == ["minilm+intents", "minilm", "minilm"]
    for cards in ((), (replace(CARD, capability="7.0"),)):
        monkeypatch.setattr(encoder_rungs, "list_gpus", lambda cards=cards: cards)
        assert names(home) == ["minilm+intents", "minilm", "minilm"]
