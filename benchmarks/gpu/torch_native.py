"""Rows of the GPU table by PyTorch alone. Run by the interpreter that has torch; imports nothing of aula.

    python3 -m benchmarks.gpu.torch_native --work FOLDER --rows NAME ... [--device cuda|cpu] [--tiny] [--seconds LIMIT]

The rows of one call share their models. Prints a JSON line when a row begins and after each variant, with all so far of
its row: the last one counts, even if this process is ended. Every variant stands for itself: one that runs out of
memory, does not compile or takes too long is reported as skipped, and the rest goes on. Inputs lie on the device before
the clock starts.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch

from benchmarks.gpu.rows import FRAMES, ROWS
from benchmarks.gpu.torch_timing import Bench, DeviceLostError, Run, tf32
from benchmarks.gpu.torch_whisper import (
    WINDOW_FRAMES,
    Hand,
    generating,
    graphed_hand,
    load_whisper,
    mels,
    recognising,
)


def one_call(bench: Bench, rows: int, open_call: Callable[[torch.dtype, bool], Run], output: str) -> None:
    """`open_call` gives the call for a type, and says for the strong variants what makes it fastest."""

    def fp32(*, products: bool) -> dict[str, Any]:
        with tf32(products=products, convolutions=True):
            return bench.time(open_call(torch.float32, False), rows)

    def reference() -> dict[str, Any]:
        """What parity is measured against: float32 throughout."""
        with tf32(products=False, convolutions=False):
            bench.outputs[output] = open_call(torch.float32, False)().float().cpu().numpy()
        return {"reference": True}

    def fp16_graph() -> dict[str, Any]:
        run = bench.graphed(open_call(torch.float16, True))
        bench.outputs[f"{output}_fp16"] = run().float().cpu().numpy()
        return bench.time(run, rows)

    def fp16_compiled() -> dict[str, Any]:
        torch._dynamo.reset()
        return bench.time(torch.compile(open_call(torch.float16, True), mode="reduce-overhead"), rows)

    # As users run it: PyTorch's default is TF32 in convolutions, and not in products.
    bench.try_variant("fp32 eager", lambda: fp32(products=False))
    bench.try_variant("fp32, no TF32", reference)
    bench.try_variant("fp32 eager TF32", lambda: fp32(products=True))
    bench.try_variant("fp16 eager", lambda: bench.time(open_call(torch.float16, False), rows))
    bench.try_variant("fp16 CUDA graph", fp16_graph)
    if bench.compile:
        bench.try_variant("fp16 torch.compile", fp16_compiled, compiled=True)


def bert(bench: Bench, row: str) -> None:
    from transformers import BertModel

    inputs = bench.load(row)

    def open_call(dtype: torch.dtype, strong: bool) -> Run:
        def load() -> Any:
            model = BertModel.from_pretrained(
                bench.work / "bert-base", dtype=dtype, add_pooling_layer=False, local_files_only=True
            )
            return model.eval().to(bench.device)

        model = bench.kept(("bert", dtype), load)
        # A mask of ones hides nothing; looking at it would stop a capture.
        given = {name: value for name, value in inputs.items() if not (strong and name == "attention_mask")}
        return lambda: model(**given).last_hidden_state

    one_call(bench, len(inputs["input_ids"]), open_call, "hidden")


def efficientnet(bench: Bench, row: str) -> None:
    from transformers import EfficientNetForImageClassification

    pixels = bench.load(row)["pixel_values"]

    def open_call(dtype: torch.dtype, _strong: bool) -> Run:
        def load() -> Any:
            return EfficientNetForImageClassification.from_pretrained(
                bench.work / "efficientnet-b0", dtype=dtype, local_files_only=True
            )

        model = bench.kept(("efficientnet", dtype), load)
        return _pictures(bench, model, pixels, dtype, lambda produced: produced.logits)

    one_call(bench, len(pixels), open_call, "logits")

    def timm_graph() -> dict[str, Any]:
        """The same network as timm writes it, with made-up weights: only its speed counts."""
        import timm

        model = timm.create_model("efficientnet_b0", pretrained=False)
        run = _pictures(bench, model, pixels, torch.float16, lambda produced: produced)
        return bench.time(bench.graphed(run), len(pixels))

    bench.try_variant("timm fp16 CUDA graph", timm_graph)


def _pictures(bench: Bench, model: Any, pixels: torch.Tensor, dtype: torch.dtype, take: Callable[[Any], Any]) -> Run:
    """Half precision takes channels last, which is what cuDNN is fastest with there."""
    order = torch.channels_last if dtype == torch.float16 else torch.contiguous_format
    model = model.eval().to(bench.device, memory_format=order)
    given = pixels.to(dtype).to(memory_format=order)
    return lambda: take(model(given))


def whisper(bench: Bench, row: str) -> None:
    rows = min(ROWS[row].rows, 4) if bench.tiny else ROWS[row].rows

    def native(name: str, dtype: torch.dtype) -> dict[str, Any]:
        run = generating(load_whisper(bench, dtype), mels(bench, rows, WINDOW_FRAMES, dtype))
        bench.outputs[f"tokens_{name}"] = run().cpu().numpy()
        return bench.time(run, rows)

    def by_hand() -> dict[str, Any]:
        """What the parity figures compare with: float32 throughout, with how far the second likeliest token was. Of all
        questions, however many are served at once: parity of a single text says little."""
        every = len(bench.load("whisper")["mel"])
        with tf32(products=False, convolutions=False):
            hand = Hand(load_whisper(bench, torch.float32), mels(bench, every, FRAMES, torch.float32), watch=True)
            bench.outputs["tokens_question_fp32"] = recognising(hand, hand.start, hand.step)().cpu().numpy()
            assert hand.gaps is not None
            bench.outputs["gaps_question_fp32"] = torch.stack(hand.gaps, dim=1).cpu().numpy()
        return {"reference": True}

    def strong(name: str, *, compiled: bool) -> dict[str, Any]:
        mel = mels(bench, rows, FRAMES, torch.float16)
        run = graphed_hand(bench, load_whisper(bench, torch.float16), mel, compiled=compiled)
        bench.outputs[f"tokens_{name}"] = run().cpu().numpy()
        return bench.time(run, rows)

    bench.try_variant("fp32 generate", lambda: native("generate_fp32", torch.float32))
    bench.try_variant("fp16 generate", lambda: native("generate_fp16", torch.float16))
    bench.try_variant("fp32 by hand, 5 s", by_hand)
    bench.try_variant("fp16 CUDA graph, 5 s", lambda: strong("graph_fp16", compiled=False))
    if bench.compile and bench.cuda:
        name = "fp16 torch.compile + CUDA graph, 5 s"
        bench.try_variant(name, lambda: strong("compiled_fp16", compiled=True), compiled=True)


def in_flight(bench: Bench, _row: str) -> None:
    def native(dtype: torch.dtype) -> dict[str, Any]:
        model = load_whisper(bench, dtype)
        open_run = lambda rows: generating(model, mels(bench, rows, WINDOW_FRAMES, dtype, same=True))  # noqa: E731
        return bench.in_flight(open_run, first=4)

    def strong() -> dict[str, Any]:
        half = torch.float16
        model = load_whisper(bench, half)
        open_run = lambda rows: graphed_hand(bench, model, mels(bench, rows, FRAMES, half, same=True))  # noqa: E731
        return bench.in_flight(open_run, first=64)

    bench.try_variant("fp32 generate", lambda: native(torch.float32))
    bench.try_variant("fp16 generate", lambda: native(torch.float16))
    bench.try_variant("fp16 CUDA graph, 5 s", strong)


MEASURES: dict[str, Callable[[Bench, str], None]] = {
    "bert-1x32": bert,
    "bert-64x32": bert,
    "whisper-1": whisper,
    "whisper-64": whisper,
    "efficientnet-32": efficientnet,
    "in-flight": in_flight,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True)
    parser.add_argument("--rows", required=True, nargs="+", choices=MEASURES)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for the runs of one variant")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for all rows together")
    parser.add_argument("--compile-seconds", type=float, default=90.0, help="for one torch.compile")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    options = parser.parse_args()
    # Libraries print where they like; the lines are for the orchestrator alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import transformers

    transformers.utils.logging.disable_progress_bar()

    def tell(bench: Bench) -> None:
        path = bench.work / f"outputs-pytorch-{bench.row}.npz"
        outputs: dict[str, Any] = bench.outputs
        np.savez(path, **outputs)
        found = {
            "row": bench.row,
            "competitor": "pytorch",
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "CUDA": torch.version.cuda,
            },
            "gpu": torch.cuda.get_device_name() if bench.cuda else "cpu",
            "limits": limits,
            "variants": bench.variants,
            "outputs": str(path),
        }
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    bench = Bench(options, tell)
    limits = bench.limits()
    bench.free()
    try:
        for row in options.rows:
            bench.begin(row)
            MEASURES[row](bench, row)
        bench.finish()
    except DeviceLostError as error:
        print(f"the device is lost to this process after {error}", file=sys.stderr, flush=True)
        os._exit(3)  # tidying up on a lost device may hang


if __name__ == "__main__":
    main()
