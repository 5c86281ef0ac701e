"""A workflow for GitHub Actions: a matrix over self-hosted runners, and a merge."""

from typing import Any

from aula.deploy.plan import (
    VERDICT,
    Plan,
    build_script,
    header,
    merge_script,
    merged,
    part_folder,
    runner,
    runner_needs,
    yaml_text,
)

CHECKOUT, UPLOAD, DOWNLOAD = "actions/checkout@v4", "actions/upload-artifact@v4", "actions/download-artifact@v4"


def workflow(plan: Plan) -> str:
    """The text of .github/workflows/engines.yml."""
    target = "${{ matrix.target }}"
    handed = part_folder(target) + (f"/{VERDICT}" if plan.has_shared_store else "")
    build = {
        "name": f"build ({target})",
        # One target that fails must not keep the others from telling what they came to.
        "strategy": {"fail-fast": False, "matrix": {"target": list(plan.targets)}},
        "runs-on": ["self-hosted", runner(target)],
        "steps": [
            {"uses": CHECKOUT},
            {
                "name": "Build, prove, measure",
                "shell": "bash",
                "env": {"TARGET": target},
                "run": _literal(build_script(plan)),
            },
            {
                "uses": UPLOAD,
                "if": "${{ always() }}",
                "with": {"name": f"engines-{target}", "path": handed, "if-no-files-found": "error"},
            },
        ],
    }
    kept = [] if plan.has_shared_store else [{"uses": UPLOAD, "with": {"name": "engines", "path": merged(plan)}}]
    merge = {
        "needs": "build",
        # After a failed build too: the merge is what refuses, and says which gate failed.
        "if": "${{ !cancelled() }}",
        "runs-on": ["self-hosted", runner(plan.home)],
        "steps": [
            {"uses": CHECKOUT},
            *(_download(one) for one in plan.targets),
            {"name": "One bundle for all targets", "shell": "bash", "run": _literal(merge_script(plan))},
            *kept,
        ],
    }
    document = {
        "name": f"Engines of {_literal(plan.model)}",
        "on": _starts(plan),
        "permissions": {"contents": "read"},
        "jobs": {"build": build, "merge": merge},
    }
    return header(plan, "Put it into .github/workflows/engines.yml.", runner_needs(plan.targets)) + yaml_text(document)


def _download(target: str) -> dict[str, Any]:
    """A build that died left nothing; then the verdict is what the merge misses."""
    handed = {"name": f"engines-{target}", "path": part_folder(target)}
    return {"uses": DOWNLOAD, "continue-on-error": True, "with": handed}


def _starts(plan: Plan) -> dict[str, Any]:
    """By hand; by whoever published the model (a hub's webhook); and by a change of it in the repository."""
    starts: dict[str, Any] = {"workflow_dispatch": {}, "repository_dispatch": {"types": ["model-updated"]}}
    if plan.tracked:
        starts["push"] = {"paths": list(plan.tracked)}
    return starts


def _literal(text: str) -> str:
    """GitHub reads ${{ in every text as an expression; what a user wrote is none."""
    return text.replace("${{", "${{ '${{' }}")
