"""How an engine's files get into the store."""

from pathlib import Path

from aula.engine.files import write_file
from aula.engine.manifest import StoredFile
from aula.engine.onnx_files import external_files, load_model, rename_external
from aula.engine.store import Store


def store_model(path: Path, store: Store) -> tuple[StoredFile, ...]:
    """Move the engine into the store, weights that lie beside it first, so that it can call them by their digests."""
    model = load_model(path, weights=False)
    beside = []
    for name in external_files(model):
        beside.append(store.add_file(path.parent / name))
        rename_external(model, name, beside[-1].name)
    if beside:
        write_file(path, lambda target: target.write_bytes(model.SerializeToString()))
    return (store.add_file(path), *beside)
