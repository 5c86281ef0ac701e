"""The engine of one part for a GPU target."""

from aula.core.errors import BackendError
from aula.engine.manifest import TargetEngine
from aula.engine.recipe import Recipe
from aula.engine.targets import Target


def build_part_for_gpu(recipe: Recipe, target: Target) -> TargetEngine:
    """Raises BackendError: TensorRT is not among the backends yet."""
    raise BackendError(
        f"there is no TensorRT here to build {recipe.name} for {target.name} ({', '.join(target.products)}) with",
        next_step="build for the CPU: aula build MODEL --target cpu",
    )
