"""`aula export`"""

import shlex
from pathlib import Path

import click

from aula.cli.output import print_json, progress_bar, results
from aula.core.errors import StorageError
from aula.engine import graph as graphs
from aula.engine.onnx_files import load_model
from aula.models.exported import export_to_onnx


@click.command(short_help="Write a Hugging Face model that has no recipe as an ONNX file.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: file, operators, parameters.")
def export(folder: Path, out: Path, force: bool, as_json: bool) -> None:
    """Write the model in FOLDER (config.json, safetensors) as the ONNX file OUT, by PyTorch's own exporter.

    For models whose family aula has no recipe for; `aula build OUT` takes it from there. Needs the extra:
    pip install "aula[export]". Code that came with the checkpoint is never run.

    \b
    Example:
      aula export ./distilbert distilbert.onnx
      aula build distilbert.onnx --profile "usual:batch=1-1-8,sequence=3-16-64"
    """
    if out.exists() and not force:
        raise StorageError(f"{out} is there already", next_step="choose another name, or replace it with --force")
    with progress_bar(quiet=as_json) as report:
        report("exporting; this may take minutes", 0.1)
        written = export_to_onnx(folder, out)
        report("exported", 1.0)
    found = graphs.report(load_model(written))
    if as_json:
        count = sum(found.operators.values())
        print_json({"file": str(written), "operators": count, "parameters": found.parameters})
        return
    results().print(f"{written}: {found}", markup=False, soft_wrap=True)
    example = "NAME:batch=1-1-8,sequence=3-16-64"
    results().print(f'Next: aula build {shlex.quote(str(written))} --profile "{example}"', markup=False, soft_wrap=True)
