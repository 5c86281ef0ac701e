"""Pipeline files in which one update of a model builds its engines on every kind of machine."""

from aula.core.errors import EngineError, StorageError
from aula.deploy.github import workflow
from aula.deploy.gitlab import pipeline_file
from aula.deploy.kubernetes import manifests
from aula.deploy.plan import Plan

_WRITERS = {"github": workflow, "gitlab": pipeline_file, "kubernetes": manifests}
KINDS = tuple(_WRITERS)


def pipeline(kind: str, plan: Plan) -> str:
    """The whole file, for one of KINDS. Raises EngineError and StorageError for what such a pipeline cannot do."""
    if kind not in _WRITERS:
        raise EngineError(f"there is no pipeline for {kind!r}", available=KINDS, next_step="choose one of these")
    if kind != "kubernetes" and plan.store is not None and plan.store.lower().startswith("pvc:"):
        raise StorageError(
            f"{plan.store} is a claim of Kubernetes, which no runner of {kind} reaches",
            next_step="give a folder or a URL: --store s3://school/engines",
        )
    return _WRITERS[kind](plan)
