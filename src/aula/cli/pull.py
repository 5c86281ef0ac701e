"""`aula pull`"""

import shlex

import click

from aula.cli.output import print_json, progress_bar, results
from aula.core.settings import load_settings
from aula.models.hub import pull as pull_checkpoint


@click.command(short_help="Fetch a checkpoint from the Hugging Face hub.")
@click.argument("model")
@click.option("--revision", help="A branch, tag or commit; the default branch if not given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: model, revision, folder.")
def pull(model: str, revision: str | None, as_json: bool) -> None:
    """Fetch the checkpoint MODEL (owner/name) from the Hugging Face hub, to build engines from.

    The commit is pinned: engines built from it name it in their manifests. Only weights in safetensors and what
    recipes read beside them are fetched, never pickles, which can run code. Digests are checked; an interrupted pull
    goes on where it stopped; a checkpoint that is there already is not fetched again.

    Where the hub is blocked or slow, name a mirror in HF_ENDPOINT. For gated or private models log in with
    `hf auth login` or set HF_TOKEN; the token goes to the mirror too.

    \b
    Example:
      aula pull sentence-transformers/all-MiniLM-L6-v2
      aula pull openai/whisper-small --revision main
      HF_ENDPOINT=https://hf-mirror.com aula pull google-bert/bert-base-chinese
    """
    with progress_bar(quiet=as_json) as report:
        pulled = pull_checkpoint(model, load_settings().home / "checkpoints", revision, report)
    if as_json:
        print_json({"model": pulled.origin.name, "revision": pulled.origin.revision, "folder": str(pulled.folder)})
        return
    console = results()
    console.print(f"{pulled.origin.name}, commit {pulled.origin.revision}", markup=False, soft_wrap=True)
    console.print(f"Folder: {pulled.folder}", markup=False, soft_wrap=True)
    console.print(f"Next: aula build {shlex.quote(str(pulled.folder))}", markup=False, soft_wrap=True)
