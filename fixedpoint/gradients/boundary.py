"""Boundary: finds the tensors that a recorded evaluation depends on but did not create.

A backward pass that is itself to be differentiated must know all tensors that it depends on, and a function does not
reveal what it is closed over. There are two sources for this: the arguments that torch functions were given while the
function ran, and the autograd graph, walked from the value to its ends. If the two disagree, there is no boundary, and
second derivatives raise an error. Watching takes a while for each operation. Where a problem names the tensors that its
values may depend on (:class:`NamesTensors`), the graph alone is walked first. If it ends at any other tensor that is
not a leaf, the function is evaluated once more, and watched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fixedpoint.core.compiling import outside_of_graphs

__all__ = ["Boundary", "Edge", "NamesTensors"]

Edge = dict[tuple[Any, int], Tensor]
"""Tensors by the autograd node that created them (for a leaf, the node that accumulates its gradient) and the index
among the results of that node."""


class NamesTensors(ABC):
    """A problem that names tensors from outside on which its values may depend."""

    @abstractmethod
    def tensors(self) -> Iterable[Tensor]:
        """Return them; those that are leaves may be left out."""


class Boundary(TorchFunctionMode):
    """A context in which to evaluate a map; afterwards :meth:`edge` returns the tensors that its value depends on.

    Parameters
    ----------
    known
        Tensors that count as created outside of the map wherever they occur in the graph.
    """

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        with torch.enable_grad():
            mark: Any = torch.zeros((), requires_grad=True).clone().grad_fn
        # Nodes are numbered in the order of their creation: smaller numbers than this one existed before.
        self._began: int = mark._sequence_nr()
        # Nodes can be keys: torch keeps one Python object for a node as long as a reference to it exists.
        self._given: Edge = {(tensor.grad_fn, tensor.output_nr): tensor for tensor in known if tensor.requires_grad}
        self._nodes: set[Any] = {node for node, _ in self._given}
        self._made: set[Any] = set()

    @outside_of_graphs
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inputs = _tensors(args, [])
        if kwargs:
            _tensors(kwargs.values(), inputs)
        before = [tensor.grad_fn for tensor in inputs]
        for tensor, node in zip(inputs, before, strict=True):
            if node is not None and node not in self._made and node._sequence_nr() < self._began:
                self._given.setdefault((node, tensor.output_nr), tensor)
                self._nodes.add(node)
        result = func(*args, **(kwargs or {}))
        for tensor, node in zip(inputs, before, strict=True):
            if tensor.grad_fn is not node:
                self._note(tensor)
        if isinstance(result, Tensor):
            self._note(result)
        elif not isinstance(result, (bool, int, float, str, torch.Size, torch.dtype, torch.device)):
            for tensor in _tensors((result,), []):
                self._note(tensor)
        return result

    def _note(self, tensor: Tensor) -> None:
        """Note that a tensor was made within the function."""
        node = tensor.grad_fn
        if node is not None and node not in self._nodes:
            self._made.add(node)

    def edge(self, value: Tensor, but: Tensor) -> Edge | None:
        """The tensors other than ``but`` on which ``value`` depends, leaves and others; None if that is not known."""
        found: Edge = {}
        seen: set[tuple[Any, int]] = set()
        edges: list[tuple[Any, int]] = [(value.grad_fn, value.output_nr)]
        while edges:
            edge = edges.pop()
            node = edge[0]
            if node is None or node is but.grad_fn or edge in seen:
                continue
            seen.add(edge)
            if edge in self._given:
                found[edge] = self._given[edge]
            elif hasattr(node, "variable"):  # the accumulator of a leaf; torch offers no other way to recognise it
                found[edge] = node.variable
            elif node._sequence_nr() < self._began:
                return None  # created before the evaluation, but never seen as an argument
            else:
                edges.extend(node.next_functions)
        return found


def _tensors(values: Iterable[Any], found: list[Tensor]) -> list[Tensor]:
    """Append the tensors among some values to a list, and return it."""
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) in (tuple, list):
            _tensors(value, found)
        elif value is not None and not isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
            found.extend(leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
    return found
