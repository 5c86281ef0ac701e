"""The graph of a course's concepts."""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from aula.assistant.documents import Document
from aula.core.errors import CourseError


def prerequisite_graph(documents: Sequence[Document]) -> dict[str, tuple[str, ...]]:
    """Each concept with the concepts that must come before it: those of the documents that teach it.

    Keys stand in the order of the documents. Raises CourseError naming prerequisites that no document teaches,
    and concepts that would each have to come before the other.
    """
    graph: dict[str, tuple[str, ...]] = {}
    for document in documents:
        for concept in document.concepts:
            earlier = graph.get(concept, ())
            graph[concept] = tuple(dict.fromkeys([*earlier, *document.prerequisites]))
    for document in documents:
        unknown = [concept for concept in document.prerequisites if concept not in graph]
        if unknown:
            raise CourseError(
                f"{document.name} needs what no document teaches: {', '.join(unknown)}",
                available=sorted(graph),
                next_step="correct the names under `prerequisites`, or add them to some document's `concepts`",
            )
    _refuse_cycles(graph)
    return graph


def _refuse_cycles(graph: Mapping[str, tuple[str, ...]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        # graphlib lists each node before the one that needs it, the first again at the end.
        raise CourseError(
            f"concepts need each other in a circle: {' → '.join(error.args[1])}",
            next_step="take one of them out of the `prerequisites` of the document that teaches it first",
        ) from error
