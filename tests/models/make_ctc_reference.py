"""Makes ctc_reference.npz: what the network of training/recogniser (PyTorch) says of a whole sound, with the small
seeded model of ctc_small_model.py and each size of chunk.

Run with PyTorch installed, from the repository's root:
    PYTHONPATH=src:. python tests/models/make_ctc_reference.py
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from aula.core.types import Float32
from aula.models.checkpoints import Checkpoint
from aula.models.ctc_config import CtcConfig, load_weights
from tests.models.ctc_small_model import CHUNKS, mel_frames, small


def trained_network(checkpoint: Checkpoint) -> Any:
    """The module that is trained, with the checkpoint's weights."""
    import torch

    from training.recogniser.model import Config, Recogniser

    raw = checkpoint.read_json("config.json")["model"]
    network = Recogniser(Config(**{**raw, "said_after": tuple(raw["said_after"])}))
    weights = load_weights(checkpoint, CtcConfig.from_checkpoint(checkpoint))
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return network.eval()


def whole(network: Any, mel: Float32, chunk: int) -> Float32:
    import torch

    with torch.no_grad():
        said: Float32 = network(torch.from_numpy(mel[None]), chunk)[-1][0].numpy()
    return said


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = small(Path(folder))
        network = trained_network(checkpoint)
        said: dict[str, Any] = {f"chunk{chunk}": whole(network, mel_frames(), chunk) for chunk in CHUNKS}
        digest = hashlib.sha256(checkpoint.weights_file.read_bytes()).hexdigest()
    np.savez_compressed(Path(__file__).with_name("ctc_reference.npz"), digest=digest, **said)


if __name__ == "__main__":
    main()
