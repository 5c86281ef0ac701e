"""The engines that our side is measured with: built, proven and stored by the product's own builder.

    python -m benchmarks.gpu.engines --work FOLDER --job bert-1x32

One job a process, so that several can be built beside each other where device time is short; tactics are then timed in
each other's way, which can only make the engines slower. Each leaves FOLDER/engines/JOB.json. Nothing is to be measured
on the host meanwhile: `python -m benchmarks.gpu --build` does one thing at a time.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from aula.backends.session import Session
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.manifest import TargetEngine
from aula.engine.plans import Extents, Plan, PlanOptions
from aula.engine.recipe import Model, Profile, Size, Task
from aula.engine.store import Store
from aula.engine.targets import TARGETS, Target
from aula.engine.workshop import Builder, Workshop
from aula.models import bert, efficientnet, efficientnet_examples, whisper, whisper_gpu
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_stepper import StepForm
from benchmarks.gpu.jobs import JOBS, NEED_QUANTISED, described, left_by, level_of, whisper_sizes
from benchmarks.gpu.rows import PICTURES, TOKENS

SLOTS = 32
"""Room for a prompt of four tokens and twenty more."""
FORMS = {"few": whisper_gpu.FEW, "many": whisper_gpu.MANY}


class Timed:
    """A builder that notes how long TensorRT took for each plan, in seconds."""

    def __init__(self, builder: Builder, seconds: list[float]) -> None:
        self._builder, self._seconds = builder, seconds
        self.typed = builder.typed

    def build(
        self,
        model: Path,
        precision: str,
        profiles: Sequence[Mapping[str, Sequence[Extents]]],
        options: PlanOptions,
        *,
        cache: bytes = b"",
    ) -> Plan:
        start = time.perf_counter()
        try:
            return self._builder.build(model, precision, profiles, options, cache=cache)
        finally:
            self._seconds.append(time.perf_counter() - start)


class Job:
    """Builds into a store of its own, and remembers what it took."""

    def __init__(self, work: Path, name: str, *, rebuild: bool = False) -> None:
        self.work, self.name, self._rebuild = work, name, rebuild
        self.store = Store(work / "stores" / name)
        self.target = next(name for name in TARGETS if TARGETS[name].is_gpu and _is_here(TARGETS[name]))
        self.seconds: list[float] = []
        self.whole_seconds = 0.0

    def build(self, model: Model, *precisions: str, level: int = 3, rebuild: bool = False) -> Bundle:
        def workshop(target: Target) -> Workshop:
            here = Workshop.here(target)
            return replace(here, builder=Timed(here.builder, self.seconds))

        options = BuildOptions(
            precisions, target=self.target, plans=PlanOptions(level=level), rebuild=rebuild or self._rebuild
        )
        say = lambda what, _share: print(f"{self.name}: {what}", flush=True)  # noqa: E731
        start = time.perf_counter()
        bundle = build(model, self.store, options, progress=say, make_workshop=workshop)
        self.whole_seconds = time.perf_counter() - start
        return bundle

    def leave(self, bundle: Bundle, **more: Any) -> None:
        tried = {
            part: [
                {
                    "precision": one.precision,
                    "milliseconds": dict(one.milliseconds),
                    "relative_error": one.relative_error,
                    "metric": one.metric,
                    "restored": list(one_restored(known.engines[self.target], one.precision)),
                    "layers": dict(one.layers),
                    "rejected": one.rejected,
                }
                for one in known.engines[self.target].candidates
            ]
            for part, known in bundle.manifest.parts.items()
        }
        gates = {
            part: gate.reference
            for part, known in bundle.manifest.parts.items()
            if (gate := known.engines[self.target].gate) is not None
        }
        path = left_by(self.work, self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "key": bundle.manifest.key,
            "target": self.target,
            "plan_seconds": self.seconds,
            "whole_seconds": self.whole_seconds,
            "tried": tried,
            "fp32_metric": gates,
            **more,
        }
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        print(json.dumps({"job": self.name, **content}), flush=True)


def one_restored(engine: TargetEngine, precision: str) -> Sequence[str]:
    """Layers that TensorRT had no int8 kernel for, or that lost too much in int8."""
    told = engine.quantisation
    return told.restored if told is not None and precision == "int8" else ()


def _is_here(target: Target) -> bool:
    from aula.backends.cuda import Cuda

    return Cuda.open().capability() == target.capability


def _fixed(name: str, **sizes: int) -> Profile:
    return Profile(name, {dimension: Size(size, size, size) for dimension, size in sizes.items()})


def build_bert(job: Job, _options: argparse.Namespace) -> None:
    recipe = bert.bert_recipe(Checkpoint(job.work / "bert-base"), "bert-base", seeded=True)
    batch = int(job.name.split("-")[1].split("x")[0])
    recipe = replace(recipe, gpu_profiles=(_fixed(job.name, batch=batch, sequence=32),))
    job.leave(job.build(Model.of(recipe)))


def build_again(job: Job, _options: argparse.Namespace) -> None:
    """BERT's plan once more, with the timings that its first build left. Compared is what TensorRT takes: the graph,
    the reference and the proof take as long as before, and are told beside it."""
    recipe = bert.bert_recipe(Checkpoint(job.work / "bert-base"), "bert-base", seeded=True)
    first = json.loads(left_by(job.work, "bert-1x32").read_text(encoding="utf-8"))
    job.store = Store(job.work / "stores" / "bert-1x32")
    recipe = replace(recipe, gpu_profiles=(_fixed("bert-1x32", batch=1, sequence=32),))
    bundle = job.build(Model.of(recipe), rebuild=True)
    job.leave(
        bundle,
        first_seconds=first["plan_seconds"],
        second_seconds=job.seconds,
        first_whole_seconds=first["whole_seconds"],
    )


def build_efficientnet(job: Job, options: argparse.Namespace) -> None:
    import onnx

    recipe = efficientnet.efficientnet_recipe(Checkpoint(job.work / "efficientnet-b0"), "efficientnet-b0")
    recipe = replace(recipe, seeded=True, gpu_profiles=(_fixed("images", batch=PICTURES),))
    if options.quantised:
        recipe = replace(
            recipe, written={"int8": lambda: onnx.load(str(options.quantised / "efficientnet-b0.int8.onnx"))}
        )
    precisions = ("fp16", "int8") if options.quantised else ("fp16",)
    level = level_of(job.name)
    job.leave(job.build(Model.of(recipe), *precisions, level=level), level=level)


def build_digits(job: Job, options: argparse.Namespace) -> None:
    """The trained EfficientNet of training/digits, int8 behind the builder's gate on its turned test pictures."""
    import onnx

    folder: Path = options.quantised / "digits"
    checkpoint = Checkpoint(folder)
    pictures = efficientnet_examples.read_pictures(folder / "test.npz", checkpoint)
    recipe = efficientnet.efficientnet_recipe(checkpoint, "digits", task=lambda: task_by_batches(pictures))
    recipe = replace(
        recipe,
        gpu_profiles=(_fixed("images", batch=PICTURES),),
        written={"int8": lambda: onnx.load(str(folder / "int8.onnx"))},
    )
    level = level_of(job.name)
    job.leave(job.build(Model.of(recipe), "fp16", "int8", level=level), level=level)


def task_by_batches(pictures: efficientnet_examples.Pictures) -> Task:
    """The trained network's task on engines of PICTURES rows, as the row's: the last batch is filled up. A plan for
    free sizes would take minutes more to build."""
    task, labels = efficientnet_examples.task(pictures), pictures.labels
    assert labels is not None

    def evaluate(session: Session) -> float:
        order = np.arange(-(-len(labels) // PICTURES) * PICTURES) % len(labels)
        guesses = [
            next(iter(session.run({efficientnet.INPUT: pictures.pixels[batch]}).values())).argmax(axis=1)
            for batch in np.split(order, len(order) // PICTURES)
        ]
        return float((np.concatenate(guesses)[: len(labels)] == labels).mean())

    return replace(task, evaluate=evaluate)


def build_whisper(job: Job, options: argparse.Namespace) -> None:
    rows, positions = whisper_sizes(job.name)
    form = _form(options.form)
    checkpoint = Checkpoint(job.work / "whisper-small")
    base = whisper.encoder_recipe(checkpoint, "whisper-small-encoder", seeded=True)
    encoder = replace(
        whisper_gpu.listener_recipe(base, checkpoint, form),
        profiles=(whisper_gpu.listening("question", rows, positions),),
    )
    steps = [whisper_gpu.stepping(name, rows, positions, SLOTS) for name in ("step", "prompt")]
    decoder = whisper_gpu.stepper_recipe(checkpoint, "whisper-small-decoder", form, steps, seeded=True)
    parts = {"encoder": encoder, "decoder": decoder}
    chosen = parts if not options.part else {options.part: parts[options.part]}
    bundle = job.build(Model("whisper-small", chosen))
    job.leave(bundle, rows=rows, positions=positions, form=str(form), tokens=TOKENS)


def _form(text: str) -> StepForm:
    """A name of FORMS, and changes behind it: few,split=4."""
    name, *changes = text.split(",")
    numbers: dict[str, Any] = {key: int(value) for key, _, value in (change.partition("=") for change in changes)}
    return replace(FORMS[name], **numbers)


Make = Callable[[Job, argparse.Namespace], None]
MAKERS: dict[str, Make] = {
    "bert-1x32": build_bert,
    "bert-64x32": build_bert,
    "bert-1x32-again": build_again,
    "efficientnet": build_efficientnet,
    "digits": build_digits,
}
FAMILIES: dict[str, Make] = {
    "whisper-": build_whisper,
    "efficientnet-": build_efficientnet,
    "digits-": build_digits,
}
"""By what their names begin with: what follows are sizes, or a level."""


def maker(job: str) -> Make | None:
    families = (make for begins, make in FAMILIES.items() if job.startswith(begins))
    return MAKERS.get(job) or next(families, None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=described(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--job", required=True, help="one below, whisper-ROWSxPOSITIONS or efficientnet-LEVEL")
    parser.add_argument("--quantised", type=Path, help="folder of int8 graphs that NNCF made where it is installed")
    parser.add_argument("--form", default="many", help="how the step is spelled: few or many, then ,split=4 and such")
    parser.add_argument("--part", default="", help="one part of Whisper alone")
    parser.add_argument(
        "--rebuild", action="store_true", help="once more, with timings as they are: to race undisturbed"
    )
    options = parser.parse_args()
    make = maker(options.job)
    if make is None:
        parser.error(f"there is no job {options.job}; there are {', '.join(JOBS)}")
    if options.job in NEED_QUANTISED and options.quantised is None:
        parser.error(f"{options.job} needs --quantised: its int8 graph is made where NNCF is installed")
    name = f"{options.job}.{options.part}" if options.part else options.job
    make(Job(options.work, name, rebuild=options.rebuild), options)


if __name__ == "__main__":
    main()
