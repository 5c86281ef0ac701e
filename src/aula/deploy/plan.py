"""What every pipeline does: a build for each target where that target is, then a merge that refuses if any failed."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

PARTS = "aula-parts"
"""The folder of what the builds hand to the merge."""
MERGED = "engines"
"""The folder of the merged bundle, where no store was named."""
VERDICT = "verdict.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """`options` are the words of `aula build` that every target shares. `files` are those that the build reads: a
    change of one that lies in the repository starts the pipeline. `image` is a container that has aula, for engines
    that need one; `run` tells one run from another where they share a store."""

    model: str
    targets: tuple[str, ...]
    options: tuple[str, ...] = ()
    store: str | None = None
    files: tuple[str, ...] = ()
    image: str | None = None
    run: str = ""

    @property
    def label(self) -> str:
        """The model's name in letters, digits and hyphens, short enough to be part of a host's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.model.lower()).strip("-")[-30:].strip("-") or "model"

    @property
    def has_shared_store(self) -> bool:
        """Whether every machine reaches the store, so that engines need not travel with the jobs."""
        return self.store is not None and "://" in self.store

    @property
    def home(self) -> str:
        """The target whose machine merges: no GPU is needed for that."""
        return "cpu" if "cpu" in self.targets else self.targets[0]

    @property
    def tracked(self) -> tuple[str, ...]:
        """The files that may lie in the repository, as patterns: each may be a folder, with all that is in it."""
        paths = [PurePosixPath(file) for file in self.files]
        inside = [path for path in paths if not path.is_absolute() and ".." not in path.parts and path.parts]
        return tuple(pattern for path in inside for pattern in (str(path), f"{path}/**"))


def build_script(plan: Plan) -> str:
    """The build of one target, whose name is in the shell's variable TARGET."""
    folder = f"{PARTS}/engines-$TARGET"
    store = shlex.quote(plan.store) if plan.has_shared_store and plan.store else f'"{folder}"'
    shared = [shlex.quote(word) for word in plan.options]
    own = ["--target", '"$TARGET"', *shared, "--store", store, "--verdict", f'"{folder}/{VERDICT}"']
    return _lines(["aula", "build", shlex.quote(plan.model), *own])


def merge_script(plan: Plan) -> str:
    """The merge of what every build left in PARTS, or in the store that they share."""
    folders = [part_folder(target) for target in plan.targets]
    bundles = [] if plan.has_shared_store else folders
    verdicts = [word for folder in folders for word in ("--verdict", f"{folder}/{VERDICT}")]
    required = ["--require", ",".join(plan.targets), "--store", shlex.quote(merged(plan))]
    return _lines(["aula", "bundle", "merge", *bundles, *verdicts, *required])


def _lines(words: Sequence[str]) -> str:
    """One command of a shell, whose words are quoted already, with a line for each option."""
    first, *others = words
    return first + "".join((" \\\n  " if word.startswith("--") else " ") + word for word in others)


def part_folder(target: str) -> str:
    return f"{PARTS}/engines-{target}"


def merged(plan: Plan) -> str:
    return plan.store or MERGED


def runner(target: str) -> str:
    """The label, or tag, of the runners on machines of that kind."""
    return f"aula-{target}"


def header(plan: Plan, *needs: str) -> str:
    """What a reader should know, as comments."""
    told = f"Written by `aula build --targets {','.join(plan.targets)} --plan-ci`: one build a target, then one bundle."
    return "".join(f"# {line}\n" for line in (told, *needs))


class _Dumper(yaml.SafeDumper):
    """Without anchors, and with a command's lines as lines."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the contract
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def yaml_text(*documents: Any) -> str:
    """As YAML, in the order given; what the text says is quoted as YAML needs it, whatever a name holds."""
    return str(yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096))


def runner_needs(targets: Sequence[str]) -> str:
    return f"Needs runners that have aula, with the labels {', '.join(runner(target) for target in targets)}."
