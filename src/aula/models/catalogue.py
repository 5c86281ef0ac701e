"""Models by name: what the packages here carry, checkpoint folders, the Hugging Face hub, and ONNX files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aula.core.errors import CheckpointError, DownloadError, EngineError, ModelNotFoundError
from aula.engine.precision import Progress
from aula.engine.profiles import read_profiles
from aula.engine.recipe import Model, Recipe
from aula.models import bert, ctc_rung, ctc_task, efficientnet, hub, sentences, whisper
from aula.models import efficientnet_examples as pictures
from aula.models.checkpoints import Checkpoint

NAMES = ("minilm", "recogniser")
"""Models that need no checkpoint."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
"""owner/name, and after an @ the branch, tag or commit."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a user gives for lower precisions: real examples to calibrate on, and labelled ones to judge by. For
    sentences text files, where None means this project's own intent examples; for speech a list of clips and their
    texts; for pictures and ONNX files npz files."""

    calibrate: Path | None = None
    labelled: Path | None = None


def find_model(
    name: str,
    evidence: Evidence | None = None,
    *,
    profiles: Sequence[str] = (),
    home: Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """The model of that name: one of NAMES, a checkpoint folder, a file that ends in .onnx, or owner/name on the
    Hugging Face hub, which is fetched into `home` unless an earlier call did.

    `profiles` are given as for `aula build --profile`; none means the recipe's own. Raises ModelNotFoundError with
    what there is, CheckpointError for a folder that holds something else, CalibrationError for evidence that cannot
    be read, EngineError for profiles that do not fit, and what fetching raises.
    """
    evidence = evidence or Evidence()
    path = Path(name).expanduser()
    if name == "minilm":
        calibration, task = sentences.evidence(bert.minilm_checkpoint(), evidence.calibrate, evidence.labelled)
        return _with_profiles(Model.of(bert.minilm_recipe(calibration=calibration, task=task)), profiles)
    if name == ctc_rung.NAME:
        recipe = _recogniser(ctc_rung.packaged_checkpoint(), name, evidence)
        return _with_profiles(Model.of(recipe), profiles)
    if path.suffix == ".onnx":
        return _onnx_file(path, evidence, profiles)
    if (path / "config.json").is_file() or (path / "modules.json").is_file():
        return _with_profiles(_folder(path, evidence), profiles)
    if not path.exists() and HUB_NAME.fullmatch(name) and home is not None:
        return _with_profiles(_from_hub(name, evidence, home, progress), profiles)
    raise ModelNotFoundError(
        f"there is no model {name!r}, nor a folder of that name with a config.json",
        available=NAMES,
        next_step="name one of these, a checkpoint folder, an .onnx file, or owner/name on the Hugging Face hub",
    )


def _from_hub(name: str, evidence: Evidence, home: Path, progress: Progress | None) -> Model:
    """What was pulled or cached before needs no network."""
    repository, _, revision = name.partition("@")
    try:
        found = hub.obtain(repository, home / "checkpoints", revision or None, progress)
    except (DownloadError, ModelNotFoundError) as error:
        # A folder's name with a slash looks like a hub's, so a slip in it ends here.
        raise type(error)(
            f"{error.what.rstrip('.')}; nor is there a folder {name} here",
            available=error.available,
            next_step=error.next_step,
        ) from error
    return _folder(found.folder, evidence)


def _folder(folder: Path, evidence: Evidence) -> Model:
    """A checkpoint that was pulled is called as on the hub, another one after its folder."""
    origin = hub.origin_of(folder)
    name = origin.name.rpartition("/")[2] if origin else folder.resolve().name
    return replace(_checkpoint(Checkpoint(folder), name, evidence), origin=origin)


def _checkpoint(checkpoint: Checkpoint, name: str, evidence: Evidence) -> Model:
    """By what config.json says; a sentence encoder may keep its own in a folder that modules.json names."""
    if (checkpoint.folder / "modules.json").is_file():
        return Model.of(_bert(checkpoint, name, evidence))
    raw = checkpoint.read_json("config.json")
    kind = str(raw.get("model_type") or raw.get("architecture"))
    if "efficientnet" in kind:
        return Model.of(_pictures(checkpoint, name, evidence))
    if kind == "whisper":
        return whisper.whisper_model(checkpoint, name, clips=evidence.labelled, calibrate=evidence.calibrate)
    if kind == "bert":
        return Model.of(_bert(checkpoint, name, evidence))
    if kind in ctc_rung.KINDS:
        return Model.of(_recogniser(checkpoint, name, evidence))
    raise CheckpointError(
        f"{checkpoint.folder} holds the architecture {kind!r}, for which there is no recipe",
        available=("bert", "whisper", "efficientnet", *ctc_rung.KINDS),
        next_step=f"write it as ONNX and build that: aula export {checkpoint.folder} {name}.onnx",
    )


def _bert(checkpoint: Checkpoint, name: str, evidence: Evidence) -> Recipe:
    """Judged on labelled sentences; calibrated on these too unless others are given."""
    calibration, task = sentences.evidence(checkpoint, evidence.calibrate, evidence.labelled)
    return bert.bert_recipe(checkpoint, name, calibration=calibration, task=task)


def _recogniser(checkpoint: Checkpoint, name: str, evidence: Evidence) -> Recipe:
    """Judged on labelled clips, or on this project's questions in synthetic voices."""
    labelled = ctc_task.listed(evidence.labelled) if evidence.labelled else None
    return ctc_rung.recipe_of(checkpoint, name, labelled)


def _pictures(checkpoint: Checkpoint, name: str, evidence: Evidence) -> Recipe:
    """Judged on labelled pictures; int8 needs both files, since aula has no pictures of its own."""
    calibrate, labelled = evidence.calibrate, evidence.labelled

    def read(path: Path) -> pictures.Pictures:
        return pictures.read_pictures(path, checkpoint)

    return efficientnet.efficientnet_recipe(
        checkpoint,
        name,
        calibration=(lambda: pictures.calibration(read(calibrate))) if calibrate else None,
        task=(lambda: pictures.task(read(labelled))) if labelled else None,
    )


def _onnx_file(path: Path, evidence: Evidence, profiles: Sequence[str]) -> Model:
    from aula.models import own_onnx

    return own_onnx.own_onnx_model(path, profiles, evidence.calibrate, evidence.labelled)


def _with_profiles(model: Model, options: Sequence[str]) -> Model:
    """The model with the profiles that the user gave, each for the part that it names before a slash, if any."""
    if not options:
        return model
    given: dict[str, list[str]] = {part: [] for part in model.parts}
    for option in options:
        part, slash, rest = option.partition("/") if not option.startswith("@") else ("", "", option)
        if slash and part not in model.parts:
            raise EngineError(
                f"the profile {option!r} is for {part!r}, which is no part of {model.name}",
                available=list(model.parts),
                next_step=f"write one of these before the slash: --profile {next(iter(model.parts))}/{rest}",
            )
        part = part if slash else next(iter(model.parts)) if len(model.parts) == 1 else ""
        if not part:
            raise EngineError(
                f"the profile {option!r} does not say for which part of {model.name} it is",
                available=list(model.parts),
                next_step=f"write the part before it: --profile {next(iter(model.parts))}/{option}",
            )
        given[part].append(rest if slash else option)
    parts = {
        name: replace(recipe, profiles=read_profiles(given[name], _dimensions(recipe)), gpu_profiles=())
        if given[name]
        else recipe
        for name, recipe in model.parts.items()
    }
    return replace(model, parts=parts)


def _dimensions(recipe: Recipe) -> list[str]:
    return list(dict.fromkeys(name for profile in recipe.profiles for name in profile.sizes))
