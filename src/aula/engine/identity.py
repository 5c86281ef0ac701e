"""What goes into a build, as digests and names: the same inputs on the same kind of machine are the same build."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path

from aula.core.errors import CheckpointError
from aula.engine.files import file_digest
from aula.engine.recipe import Recipe


def readable_key(name: str, identity: object) -> str:
    """A name for people and a digest for machines; a name may hold anything, a key only what every disk takes."""
    readable = re.sub(r"[^A-Za-z0-9._@+-]+", "-", name).strip("-._@+")[:100] or "model"
    digest = hashlib.sha256(json.dumps([name, identity], sort_keys=True).encode()).hexdigest()
    return f"{readable}-{digest[:16]}"


def digest_sources(recipe: Recipe) -> dict[str, str]:
    """SHA-256 by file name; files that share a name are told apart by their folders. Raises CheckpointError."""
    digests: dict[str, str] = {}
    for source in recipe.sources:
        twins = [other.parent for other in recipe.sources if other.name == source.name]
        name = source.name if len(twins) == 1 else source.relative_to(os.path.commonpath(twins)).as_posix()
        try:
            digests[name] = file_digest(source)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint file {source} cannot be read ({error.strerror or error})",
                next_step="install or copy the checkpoint again; aula doctor says how",
            ) from error
    return digests


def usable_cores() -> int:
    """Cores this process may run on; hyper-threads are not told apart, since the scheduler may give us either."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, where the system tells."""
    names = [line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def instructions() -> str:
    """What decides which backend is fastest: the processor's name and instruction sets, where the system tells."""
    return "\n".join(sorted({line for line in _cpu_lines() if line.startswith(("model name", "flags"))}))


def package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
