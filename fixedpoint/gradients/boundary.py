"""Boundary: the tensors that a recorded evaluation depends on and did not make itself.

A backward pass that is to be differentiated in turn must know what it depends on, and a function tells nobody what it
is closed over. Two witnesses do: what torch functions were given while it ran, and the graph it left, walked from the
value to where it ends. Both must agree, or there is no boundary and second derivatives are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fixedpoint.core.compiling import outside_of_graphs

__all__ = ["Boundary", "Edge"]

Edge = dict[tuple[Any, int], Tensor]
"""Tensors by the node that made them (a leaf: that collects for it) and which of its results they are."""


class Boundary(TorchFunctionMode):
    """A context to evaluate a map in; then :meth:`edge` has what the value depends on.

    Parameters
    ----------
    known
        Tensors that are to be taken for given if they are met, whoever made them.
    """

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        with torch.enable_grad():
            mark: Any = torch.zeros((), requires_grad=True).clone().grad_fn
        self._began: int = mark._sequence_nr()
        # Nodes are keys themselves: torch has one Python object for a node as long as somebody holds it.
        self._given: Edge = {(tensor.grad_fn, tensor.output_nr): tensor for tensor in known if tensor.requires_grad}
        self._made: set[Any] = set()

    @outside_of_graphs
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = [tensor.grad_fn for tensor in inputs]
        for tensor, node in zip(inputs, before, strict=True):
            if node is not None and node not in self._made and node._sequence_nr() < self._began:
                self._given.setdefault((node, tensor.output_nr), tensor)
        result = func(*args, **(kwargs or {}))
        given = {node for node, _ in self._given}
        changed = [tensor for tensor, node in zip(inputs, before, strict=True) if tensor.grad_fn is not node]
        for tensor in (*changed, *(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))):
            if tensor.grad_fn is not None and tensor.grad_fn not in given:
                self._made.add(tensor.grad_fn)
        return result

    def edge(self, value: Tensor, but: Tensor) -> Edge | None:
        """What ``value`` depends on beside ``but``, leaves and others; None where that cannot be told."""
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
            elif hasattr(node, "variable"):  # a leaf's accumulator; torch tells them apart in no other way
                found[edge] = node.variable
            elif node._sequence_nr() < self._began:
                return None
            else:
                edges.extend(node.next_functions)
        return found
