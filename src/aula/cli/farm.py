"""`aula build --targets`: what was asked for, as the words that ask for it again, here and elsewhere."""

import secrets
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click

from aula.backends.gpus import list_gpus
from aula.cli.engine_tables import bundle_as_json, plain, print_bundle
from aula.cli.output import notices, print_json, progress_bars, results
from aula.core.settings import load_settings
from aula.deploy.pipelines import pipeline
from aula.deploy.plan import Plan
from aula.engine.build import MOST_DROP
from aula.engine.farm import Harvest, build_targets, progress_line
from aula.engine.plans import PlanOptions
from aula.engine.store import open_store


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of `aula build`, whatever the target."""

    model: str
    precisions: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    calibrate: Path | None = None
    labelled: Path | None = None
    store: str | None = None
    most_drop: float = 100 * MOST_DROP
    rebuild: bool = False
    plans: PlanOptions = field(default_factory=PlanOptions)
    without: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """Those that were given, without the model and the store."""
        pairs = [("--precision", one) for one in self.precisions]
        pairs += [("--without", one) for one in self.without]
        pairs += [("--profile", one) for one in self.profiles]
        pairs += [("--calibrate", str(self.calibrate))] if self.calibrate else []
        pairs += [("--labelled", str(self.labelled))] if self.labelled else []
        pairs += [("--most-drop", str(self.most_drop))] if self.most_drop != 100 * MOST_DROP else []
        usual = PlanOptions()
        pairs += [("--level", str(self.plans.level))] if self.plans.level != usual.level else []
        if self.plans.compatibility != usual.compatibility:
            pairs += [("--compatibility", self.plans.compatibility)]
        flags = {
            "--version-compatible": self.plans.version_compatible,
            "--stripped": self.plans.stripped,
            "--rebuild": self.rebuild,
        }
        return (*(word for pair in pairs for word in pair), *(flag for flag, given in flags.items() if given))

    def command(self, *words: str) -> tuple[str, ...]:
        """`aula build` with everything that was asked for and these words."""
        store = ("--store", self.store) if self.store else ()
        return ("aula", "build", self.model, *words, *self.words, *store)

    @property
    def files(self) -> tuple[str, ...]:
        """What it reads: the model, unless that is a name, and evidence."""
        path = Path(self.model)
        read = [self.model] if path.suffix == ".onnx" or path.is_absolute() or path.exists() else []
        read += [str(path) for path in (self.calibrate, self.labelled) if path is not None]
        return (*read, *(one[1:] for one in self.profiles if one.startswith("@")))


def plan_pipeline(asked: Asked, targets: tuple[str, ...], kind: str, image: str | None) -> str:
    """The text of a pipeline that builds the same elsewhere."""
    run = secrets.token_hex(4)
    return pipeline(kind, Plan(asked.model, targets, asked.words, asked.store, asked.files, image, run))


@contextmanager
def progress_lines() -> Iterator[Callable[[str, float], None]]:
    """Progress for the farm that started this build."""
    yield lambda what, share: click.echo(progress_line(what, share), err=True)


def build_everywhere(asked: Asked, targets: Sequence[str], *, as_json: bool) -> None:
    """Build what this machine can, and say what is missing and what failed. Ends with the first failure's code."""
    settings = load_settings()
    elsewhere = shlex.join(asked.command("--targets", ",".join(targets), "--plan-ci", "github"))

    def command(target: str) -> tuple[str, ...]:
        # -P: a folder called aula in the working folder is not this program.
        words = asked.command("--target", target, "--json", "--progress-lines")
        return (sys.executable, "-P", "-m", *words)

    with progress_bars(quiet=as_json) as report:
        harvest = build_targets(
            targets,
            command,
            open_store(asked.store or settings.home / "engines", settings.home / "fetched"),
            gpus=list_gpus(),
            locks=settings.home / "locks",
            report=report,
            elsewhere=elsewhere,
        )
    if as_json:
        print_json(
            {
                "bundle": bundle_as_json(harvest.bundle) if harvest.bundle else None,
                "built": list(harvest.built),
                "absent": dict(harvest.absent),
                "failed": {target: failure.reason for target, failure in harvest.failed.items()},
            }
        )
    else:
        _print(harvest, asked, elsewhere)
    if harvest.failed:
        raise SystemExit(next(iter(harvest.failed.values())).code)


def _print(harvest: Harvest, asked: Asked, elsewhere: str) -> None:
    if harvest.bundle is not None:
        print_bundle(results(), harvest.bundle)
        again = f" --store {shlex.quote(asked.store)}" if asked.store else ""
        command = f"aula inspect {shlex.quote(harvest.bundle.manifest.key)}{again}"
        results().print(f"Next: {command}", markup=False, soft_wrap=True)
    for target, failure in harvest.failed.items():
        notices().print(plain(f"✗ {target} failed: {failure.reason}"), soft_wrap=True)
    for why in harvest.absent.values():
        notices().print(plain(f"Not built: {why}"), soft_wrap=True)
    if harvest.absent:
        notices().print(
            plain(f"Next: build them where they are (github, gitlab, kubernetes): {elsewhere}"), soft_wrap=True
        )
