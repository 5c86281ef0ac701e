"""A pipeline for GitLab CI: a matrix over runner tags, and a merge."""

from typing import Any

from aula.deploy.plan import (
    PARTS,
    VERDICT,
    Plan,
    build_script,
    header,
    merge_script,
    merged,
    runner,
    runner_needs,
    yaml_text,
)

BY_HAND = ("web", "api", "trigger", "schedule")
"""The pipelines that somebody, or a hub's webhook, asked for."""


def pipeline_file(plan: Plan) -> str:
    """The text of .gitlab-ci.yml."""
    handed = f"{PARTS}/engines-$TARGET" + (f"/{VERDICT}" if plan.has_shared_store else "")
    build = {
        "stage": "build",
        "parallel": {"matrix": [{"TARGET": list(plan.targets)}]},
        "tags": [runner("$TARGET")],
        "script": [build_script(plan)],
        "artifacts": {"when": "always", "paths": [handed], "expire_in": "1 week"},
    }
    merge: dict[str, Any] = {
        "stage": "merge",
        "needs": [{"job": "build", "artifacts": True}],
        # After a failed build too: the merge is what refuses, and says which gate failed.
        "when": "always",
        "tags": [runner(plan.home)],
        "script": [merge_script(plan)],
    }
    if not plan.has_shared_store:
        merge["artifacts"] = {"paths": [merged(plan)]}
    document: dict[str, Any] = {"stages": ["build", "merge"], "workflow": {"rules": _starts(plan)}}
    if plan.image:
        document["default"] = {"image": plan.image}
    document |= {"build": build, "merge": merge}
    return header(plan, "Put it into .gitlab-ci.yml.", runner_needs(plan.targets)) + yaml_text(document)


def _starts(plan: Plan) -> list[dict[str, Any]]:
    asked = [{"if": f'$CI_PIPELINE_SOURCE == "{source}"'} for source in BY_HAND]
    # GitLab's patterns need a star of their own for the files in a folder.
    changed = [path + "/*" if path.endswith("/**") else path for path in plan.tracked]
    return [*asked, *([{"if": '$CI_PIPELINE_SOURCE == "push"', "changes": changed}] if changed else [])]
