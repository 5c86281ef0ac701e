"""Jobs for Kubernetes: one on a node of each kind of GPU, and a merge that waits for their verdicts.

Jobs do not depend on each other there. So the merge is tried until every verdict is in the store that all share: it
ends with exit code 9 as long as one is missing, which its pod failure policy alone tries again.
"""

from pathlib import PurePosixPath
from typing import Any

from aula.core.errors import EngineError, StorageError
from aula.deploy.plan import MERGED, Plan, header, yaml_text
from aula.engine.targets import TARGETS, Target

IMAGE = "aula:latest"
MOUNT = "/aula"
"""Where a claim's disk is in every pod."""
HOME = "/tmp/aula"  # noqa: S108 - an empty disk of the pod's own
SECRET = "aula-store"  # noqa: S105 - a name
KEPT_SECONDS = 7 * 24 * 3600
MERGE_TRIES = 60
"""Tries are 10 s apart, then twice as long each time, at most 6 minutes: 60 of them take more than 5 hours."""
MERGE_SECONDS = 6 * 3600


def manifests(plan: Plan) -> str:
    """The text for `kubectl apply`. Raises StorageError without a store that every node reaches, EngineError for files
    that are on this machine alone."""
    _check_files(plan)
    claim, store = _store(plan)
    verdicts = {target: f"{store}/verdicts/{plan.run}/{target}.json" for target in plan.targets}
    jobs = [
        _job(
            plan,
            target,
            ["build", plan.model, "--target", target, *plan.options, "--store", store, "--verdict", verdicts[target]],
            claim,
            retries={"backoffLimit": 0},
            pod=_placement(TARGETS[target]),
            container={"resources": {"limits": {"nvidia.com/gpu": 1}}} if TARGETS[target].is_gpu else {},
        )
        for target in plan.targets
    ]
    told = [word for verdict in verdicts.values() for word in ("--verdict", verdict)]
    merging = ["bundle", "merge", *told, "--require", ",".join(plan.targets), "--store", store]
    waits = {"backoffLimit": MERGE_TRIES, "activeDeadlineSeconds": MERGE_SECONDS}
    jobs.append(_job(plan, "merge", merging, claim, retries=waits, only=StorageError.exit_code))
    needs = (
        "For each update of the model print it anew, and: kubectl apply -f FILE",
        f"Needs an image that has aula ({plan.image or IMAGE}), and the node labels of NVIDIA's GPU feature discovery.",
        f"Needs the secret {SECRET} if the store wants credentials: they become environment variables."
        if claim is None
        else f"Needs the claim {claim}, writable from every node; it is {MOUNT} in every pod.",
    )
    return header(plan, *needs) + yaml_text(*jobs)


def _job(
    plan: Plan,
    name: str,
    words: list[str],
    claim: str | None,
    *,
    retries: dict[str, Any],
    pod: dict[str, Any] | None = None,
    container: dict[str, Any] | None = None,
    only: int | None = None,
) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": "home", "emptyDir": {}}]
    mounts = [{"name": "home", "mountPath": HOME}]
    credentials: dict[str, Any] = {"envFrom": [{"secretRef": {"name": SECRET, "optional": True}}]}
    if claim is not None:
        volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "store", "mountPath": MOUNT})
        credentials = {}
    labels = {"app.kubernetes.io/name": "aula", "app.kubernetes.io/instance": f"{plan.label}-{plan.run}"}
    # A node that is drained is nobody's failure; of the others only those that waiting mends are tried again.
    rules: list[dict[str, Any]] = [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]
    if only is not None:
        rules.append({"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [only]}})
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"aula-{plan.label}-{plan.run}-{name}", "labels": labels},
        "spec": {
            **retries,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "podFailurePolicy": {"rules": rules},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "restartPolicy": "Never",
                    **(pod or {}),
                    "containers": [
                        {
                            "name": "aula",
                            "image": plan.image or IMAGE,
                            "command": ["aula"],
                            "args": [_literal(word) for word in words],
                            "env": [{"name": "AULA_HOME", "value": HOME}],
                            **credentials,
                            "volumeMounts": mounts,
                            **(container or {}),
                        }
                    ],
                    "volumes": volumes,
                },
            },
        },
    }


def _placement(target: Target) -> dict[str, Any]:
    """A node with such a card. A selector takes one product; where there are several, affinity takes any of them."""
    if not target.is_gpu:
        return {}
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    label = "nvidia.com/gpu.product"
    if len(target.selectors) == 1:
        return {"nodeSelector": {label: target.selectors[0]}, "tolerations": tolerations}
    any_of = {"key": label, "operator": "In", "values": list(target.selectors)}
    required = {"nodeSelectorTerms": [{"matchExpressions": [any_of]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    return {"affinity": affinity, "tolerations": tolerations}


def _store(plan: Plan) -> tuple[str | None, str]:
    """The claim, if it is one, and the store's place in a pod."""
    if not plan.has_shared_store or plan.store is None:
        raise StorageError(
            f"nodes do not share {plan.store or 'a folder of this machine'}",
            next_step="name a store that all of them reach: --store s3://school/engines, or a persistent volume claim: "
            "--store pvc://CLAIM/engines",
        )
    scheme, _, rest = plan.store.partition("://")
    if scheme.lower() != "pvc":
        return None, plan.store.rstrip("/")
    claim, _, folder = rest.partition("/")
    folder = folder.strip("/") or MERGED
    if not claim or ".." in PurePosixPath(folder).parts:
        raise StorageError(f"{plan.store} names no claim", next_step="write it like --store pvc://CLAIM/engines")
    return claim, f"{MOUNT}/{folder}"


def _check_files(plan: Plan) -> None:
    for file in plan.files:
        if not PurePosixPath(file).is_absolute():
            raise EngineError(
                f"{file} is a file of this machine, which no pod has",
                next_step=f"put it into the image or on the claim, and give its whole path there: {MOUNT}/{file}",
            )


def _literal(word: str) -> str:
    """Kubernetes reads $(NAME) in arguments as a variable; what a user wrote is none."""
    return word.replace("$(", "$$(")
