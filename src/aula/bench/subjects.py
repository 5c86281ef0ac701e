"""What is measured: a model, the store its bundle lies in, and the shapes at which it runs."""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aula.core.errors import EngineError, ModelNotFoundError
from aula.engine.foreign import free_dimensions, input_specs
from aula.engine.precision import Progress
from aula.engine.recipe import Model, Profile, Recipe, Size
from aula.engine.store import Store
from aula.models import bert, bert_seeded, efficientnet, efficientnet_seeded, whisper
from aula.models.catalogue import NAMES, Evidence, find_model
from aula.models.own_onnx import own_onnx_recipe, read_graph

ARCHITECTURES = tuple(
    name
    for table in (bert_seeded.ARCHITECTURES, whisper.ARCHITECTURES, efficientnet_seeded.ARCHITECTURES)
    for name in table
    if name not in NAMES
)
"""Measured on seeded random weights of the true sizes."""
SEED = 0

USUAL_SHAPES = {
    "bert": ("1x32", "1x128"),
    "minilm": ("1x32",),
    "efficientnet": ("1x3x224x224",),
    "whisper": ("encoder/1x500", "decoder/1x1x1x64x250"),
}
"""By what a model's name begins with: a question and a passage; one picture; five seconds of sound, and one step of a
question's text."""
_SHAPE = re.compile(r"(?:(?P<part>[\w.-]+)/)?(?P<sizes>[1-9]\d{0,6}(?:x[1-9]\d{0,6})*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a part's free dimensions, under the name they were asked for by."""

    part: str
    name: str
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Subject:
    """`profiles` names the profile of the bundle that serves each shape, by part and the shape's name."""

    name: str
    model: Model
    store: Store
    shapes: tuple[Shape, ...]
    profiles: Mapping[tuple[str, str], str]
    seeded: bool


@contextlib.contextmanager
def open_subject(
    name: str,
    evidence: Evidence,
    shapes: Sequence[str],
    *,
    store: Store,
    home: Path,
    progress: Progress | None = None,
) -> Iterator[Subject]:
    """An architecture of ARCHITECTURES with seeded weights, or an ONNX file with free dimensions, in a store that is
    gone at the end and compiled for the very shapes; or whatever `find_model` finds, in `store`, with its own profiles.

    Raises what `find_model` raises, and EngineError for shapes that do not fit.
    """
    free = _free_dimensions(name)
    if name not in ARCHITECTURES and not free:
        try:
            model = find_model(name, evidence, home=home, progress=progress)
        except ModelNotFoundError as error:
            names = (*error.available, *ARCHITECTURES)
            raise ModelNotFoundError(error.what, available=names, next_step=error.next_step) from error
        yield subject_of(model, store, shapes, name)
        return
    with tempfile.TemporaryDirectory(prefix="aula-bench-") as folder:
        if free:
            yield onnx_subject(Path(name).expanduser(), free, evidence, Store(Path(folder) / "store"), shapes)
            return
        if progress is not None:
            progress(f"making up weights of {name}", 0.0)
        model = seeded_model(name, Path(folder) / "checkpoint")
        yield seeded_subject(model, Store(Path(folder) / "store"), shapes, name)


def subject_of(model: Model, store: Store, shapes: Sequence[str], name: str = "") -> Subject:
    """With the model's own profiles; by default at the usual sizes of each. Raises EngineError for a shape that no
    profile serves."""
    texts = shapes or _usual(name)
    found = _read_all(model, texts) if texts else _profiles_own(model)
    profiles = {(shape.part, shape.name): _serving(model.parts[shape.part], shape) for shape in found}
    return Subject(model.name, model, store, tuple(found), profiles, any(r.seeded for r in model.parts.values()))


def seeded_subject(model: Model, store: Store, shapes: Sequence[str], name: str = "") -> Subject:
    """With one profile for each shape, fixed to it, and only the parts that are asked for."""
    texts = shapes or _usual(name)
    found = _read_all(model, texts) if texts else _profiles_own(model)
    return replace(_fixed(model, found, store), seeded=True)


def onnx_subject(path: Path, free: Sequence[str], evidence: Evidence, store: Store, shapes: Sequence[str]) -> Subject:
    """An ONNX file whose dimensions `free` get their sizes from the shapes alone, which it therefore needs."""
    usual = {name: 1 if "batch" in name.lower() else 16 for name in free}
    if not shapes:
        raise EngineError(
            f"{path.name} has the free dimensions {', '.join(free)}, and nothing says at which sizes to run it",
            available=free,
            next_step=f"give a size for each, in this order: --shape {'x'.join(str(size) for size in usual.values())}",
        )
    recipe = own_onnx_recipe(
        path,
        path.stem,
        # Only until the shapes are read.
        profiles=(Profile("usual", {name: Size(1, size, size) for name, size in usual.items()}),),
        calibrate=evidence.calibrate,
        labelled=evidence.labelled,
    )
    return _fixed(Model.of(recipe), _read_all(Model.of(recipe), shapes), store)


def _free_dimensions(name: str) -> list[str]:
    """Of an ONNX file; of anything else none."""
    path = Path(name).expanduser()
    if path.suffix != ".onnx":
        return []
    return free_dimensions(input_specs(read_graph(path, weights=False)))


def _fixed(model: Model, found: Sequence[Shape], store: Store) -> Subject:
    """With one profile for each shape, and only the parts that are asked for."""
    parts = {}
    for part, recipe in model.parts.items():
        fixed = {shape.name: shape.sizes for shape in found if shape.part == part}
        if fixed:
            profiles = tuple(
                Profile(shape, {axis: Size(size, size, size) for axis, size in sizes.items()})
                for shape, sizes in fixed.items()
            )
            parts[part] = replace(recipe, profiles=profiles)
    names = {(shape.part, shape.name): shape.name for shape in found}
    seeded = any(recipe.seeded for recipe in parts.values())
    return Subject(model.name, replace(model, parts=parts), store, tuple(found), names, seeded)


def seeded_model(name: str, folder: Path) -> Model:
    """One of ARCHITECTURES, with seeded random weights written into `folder`."""
    if name in whisper.ARCHITECTURES:
        checkpoint = whisper.random_checkpoint(whisper.ARCHITECTURES[name], folder, SEED)
        return whisper.whisper_model(checkpoint, name, seeded=True)
    if name in efficientnet_seeded.ARCHITECTURES:
        recipe = efficientnet.efficientnet_recipe(efficientnet_seeded.random_checkpoint(name, folder, SEED), name)
        made_up = replace(recipe, seeded=True, calibration=lambda: efficientnet_seeded.random_calibration(recipe))
        return Model.of(made_up)
    return Model.of(bert.bert_recipe(bert_seeded.random_checkpoint(name, folder, SEED), name, seeded=True))


def dimensions(recipe: Recipe) -> list[str]:
    """The free dimensions, in the order in which a shape gives them."""
    return list(dict.fromkeys(name for profile in recipe.profiles for name in profile.sizes))


def _usual(name: str) -> tuple[str, ...]:
    return next((shapes for start, shapes in USUAL_SHAPES.items() if name.startswith(start)), ())


def _read_all(model: Model, texts: Sequence[str]) -> list[Shape]:
    return [read_shape(text, model) for text in dict.fromkeys(texts)]


def read_shape(text: str, model: Model) -> Shape:
    """ "1x32": a size for every free dimension, or the whole shape of an input; "encoder/1x500" where there are several
    parts. Raises EngineError that shows a right one."""
    written = _SHAPE.fullmatch(text.strip())
    if written is None:
        raise _wrong(text, "it is not numbers with x between them", model)
    part = written["part"] or (next(iter(model.parts)) if len(model.parts) == 1 else "")
    if not part:
        raise _wrong(text, f"it does not say for which part of {model.name} it is", model)
    recipe = model.recipe(part)
    numbers = tuple(int(number) for number in written["sizes"].split("x"))
    sizes = _sizes(recipe, numbers)
    if sizes is None:
        raise _wrong(text, f"the free dimensions of {part} are {', '.join(dimensions(recipe))}", model)
    return Shape(part, written["sizes"], sizes)


def _sizes(recipe: Recipe, numbers: tuple[int, ...]) -> dict[str, int] | None:
    names = dimensions(recipe)
    if len(numbers) == len(names):
        return dict(zip(names, numbers, strict=True))
    usual = recipe.profiles[0].usual

    def shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in recipe.example(sizes, np.random.default_rng(0)).items()}

    # The axis that a dimension stands for is the one that grows with it.
    before = shapes(usual)
    grown = {name: shapes({**usual, name: usual[name] + 1}) for name in names}
    for tensor, shape in before.items():
        if len(shape) != len(numbers):
            continue
        axes = {
            name: next((axis for axis, size in enumerate(shape) if after[tensor][axis] != size), None)
            for name, after in grown.items()
        }
        found = {name: numbers[axis] for name, axis in axes.items() if axis is not None}
        if len(found) == len(names) and shapes(found)[tensor] == numbers:
            return found
    return None


def _profiles_own(model: Model) -> list[Shape]:
    return [
        Shape(part, "x".join(str(size) for size in profile.usual.values()) or profile.name, profile.usual)
        for part, recipe in model.parts.items()
        for profile in recipe.profiles
    ]


def _serving(recipe: Recipe, shape: Shape) -> str:
    """The narrowest profile that has room for the shape."""
    fitting = [
        profile
        for profile in recipe.profiles
        if all(size.least <= shape.sizes[name] <= size.greatest for name, size in profile.sizes.items())
    ]
    if not fitting:
        raise EngineError(
            f"no profile of {recipe.name} serves the shape {shape.name}",
            available=[_extent(profile) for profile in recipe.profiles],
            next_step="choose a shape within one of these",
        )
    return min(fitting, key=lambda profile: sum(size.greatest - size.least for size in profile.sizes.values())).name


def _extent(profile: Profile) -> str:
    sizes = ", ".join(f"{name} {size.least} to {size.greatest}" for name, size in profile.sizes.items())
    return f"{profile.name} ({sizes})"


def _wrong(text: str, why: str, model: Model) -> EngineError:
    part, recipe = next(iter(model.parts.items()))
    example = "x".join(str(size) for size in recipe.profiles[0].usual.values())
    prefix = f"{part}/" if len(model.parts) > 1 else ""
    return EngineError(
        f"the shape {text[:80]!r} cannot be used: {why}",
        available=list(model.parts) if len(model.parts) > 1 else (),
        next_step=f"write it like this: --shape {prefix}{example}",
    )
