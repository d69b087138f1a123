"""Change what a workflow in API format draws, without knowing the numbers of its nodes."""

from __future__ import annotations

import copy

Graph = dict[str, dict]


class WorkflowError(ValueError):
    """A workflow has no place for what was asked of it."""


def source(graph: Graph, node: str, name: str) -> str | None:
    """The node that an input is linked to, or None where the input holds a value or is absent."""
    value = graph[node]["inputs"].get(name)
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] in graph else None


def upstream(graph: Graph, start: str) -> list[str]:
    """A node and all that it is made from, nearest first."""
    order = [start]
    for node in order:
        order.extend(
            found
            for name in graph[node]["inputs"]
            if (found := source(graph, node, name)) is not None and found not in order
        )
    return order


def ending(graph: Graph) -> str:
    """The node that saves or shows the picture; a saving one first."""
    for kind in ("SaveImage", "PreviewImage"):
        for node, data in graph.items():
            if data["class_type"] == kind:
                return node
    raise WorkflowError("The workflow neither saves nor shows a picture: it needs a SaveImage or PreviewImage node.")


def sampler(graph: Graph) -> str:
    """The first sampler, from the picture upwards: the node with a positive and a latent input."""
    for node in upstream(graph, ending(graph)):
        if source(graph, node, "positive") and source(graph, node, "latent_image"):
            return node
    raise WorkflowError("The workflow has no sampler with a positive and a latent_image input.")


def prompt_node(graph: Graph, side: str) -> str | None:
    """The PixArtTextEncode whose caption reaches the sampler's ``positive`` or ``negative``."""
    start = source(graph, sampler(graph), side)
    for node in upstream(graph, start) if start else ():
        if graph[node]["class_type"] == "PixArtTextEncode":
            return node
    return None


def set_value(graph: Graph, names: tuple[str, ...], value: float, start: str) -> None:
    """Set the first plain input of one of these names, from a node upwards."""
    for node in upstream(graph, start):
        for name in names:
            if name in graph[node]["inputs"] and source(graph, node, name) is None:
                graph[node]["inputs"][name] = value
                return
    raise WorkflowError(f"The workflow has no node with a {names[0]} to set.")


def set_negative(graph: Graph, positive: str, text: str) -> None:
    """Write the negative prompt, in a node of its own where the workflow has none for text."""
    node = prompt_node(graph, "negative")
    if node is None or node == positive:
        node = "negative"
        graph[node] = copy.deepcopy(graph[positive])
        graph[sampler(graph)]["inputs"]["negative"] = [node, 0]
    graph[node]["inputs"]["text"] = text


def personalise(
    graph: Graph,
    prompt: str,
    *,
    negative: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    cfg: float | None = None,
    width: int | None = None,
    height: int | None = None,
) -> tuple[Graph, str]:
    """A copy of a workflow that draws ``prompt``, and its node that ends with the picture.

    What is None stays as the workflow has it. Raises WorkflowError where the workflow has no place for a value.
    """
    graph = copy.deepcopy(graph)
    positive = prompt_node(graph, "positive")
    if positive is None:
        raise WorkflowError("No PixArtTextEncode reaches the sampler's positive input in the workflow.")
    graph[positive]["inputs"]["text"] = prompt
    if negative is not None:
        set_negative(graph, positive, negative)
    start = sampler(graph)
    for names, value in ((("seed", "noise_seed"), seed), (("steps",), steps), (("cfg",), cfg)):
        if value is not None:
            set_value(graph, names, value, start)
    for name, value in (("width", width), ("height", height)):
        if value is not None:
            set_value(graph, (name,), value, source(graph, start, "latent_image"))
    return graph, ending(graph)
