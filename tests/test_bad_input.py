"""Bad input is refused with a sentence that names what came and what was wanted, before any work is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fixedpoint
from fixedpoint import Anderson, Broyden, Picard, Termination, find_root, solve
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.options import OptionError
from fixedpoint.core.problem import FunctionProblem
from fixedpoint.testing.chains import linear_chain
from fixedpoint.testing.problems import Cosine

X = torch.full((2, 3), 0.5)
META = torch.empty(2, 3, device="meta")


class Halving(Chain):
    """A chain whose step does what the test requires."""

    def __init__(self, step: Callable[[Tensor], Any] = lambda x: x / 2, length: int = 4) -> None:
        self.length = length
        self._step = step

    def step(self, x: Tensor, index: Tensor, row: Tensor) -> Any:
        return self._step(x)


def later(changed: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A function that is fine twice and then returns something else."""
    calls = [0]

    def f(z: Tensor) -> Any:
        calls[0] += 1
        return z.cos() if calls[0] < 3 else changed(z)

    return f


def chained(step: Callable[[Tensor], Any]) -> Callable[[], Any]:
    return lambda: solve(ChainProblem(Halving(step), X))


STARTS = {
    "no start": (lambda: solve(torch.cos), "solve requires a start z0 for a plain function"),
    "NaN": (lambda: solve(torch.cos, X * torch.nan), "z0 must be finite, got 6 entries that are NaN or Inf"),
    "Inf": (lambda: solve(np.cos, np.array([1.0, np.inf])), "z0 must be finite, got 1 entries"),
    "integers": (
        lambda: solve(torch.cos, torch.ones(2, 3, dtype=torch.int64)),
        "floating-point dtype, got torch.int64",
    ),
    "integer array": (lambda: solve(np.cos, np.ones(3, dtype=int)), "z0 must be of a floating-point dtype, got int64"),
    "an int": (lambda: solve(np.cos, 1), "z0 must be a tensor, an array or a float, got int"),
    "booleans": (lambda: solve(torch.cos, X > 0), "floating-point dtype, got torch.bool"),
    "real and complex": (
        lambda: solve(lambda z: z, (X, X * 1j)),
        r"all of z0 must have one dtype: z0\[0\] is torch.float32, z0\[1\] is torch.complex64",
    ),
    "float8": (
        lambda: solve(torch.cos, X.to(torch.float8_e4m3fn)),
        "z0 must be float64, float32, bfloat16 or float16, got torch.float8_e4m3fn",
    ),
    "sparse": (lambda: solve(torch.cos, X.to_sparse()), "z0 must be a dense tensor, got torch.sparse_coo"),
    "no memory": (lambda: solve(torch.cos, META), "z0 must hold numbers, got a tensor on the meta device"),
    "text": (lambda: solve(torch.cos, "start"), "z0 must be a tensor, an array or a float, got str"),
    "text within": (lambda: solve(torch.cos, {"a": X, "b": "x"}), r"z0\['b'\] must be a tensor, an array or a float"),
    "nothing in it": (lambda: solve(torch.cos, ()), r"z0 holds no tensor, got \(\)"),
    "empty": (lambda: solve(torch.cos, torch.ones(0, 3)), r"z0 is empty, got shape \(0, 3\)"),
    "two dtypes": (lambda: solve(torch.cos, (X, X.double())), "all of z0 must have one dtype: .*float32.*float64"),
    "two devices": (lambda: solve(torch.cos, (X, META)), "all of z0 must have one device: .*cpu.*meta"),
    "torch and numpy": (lambda: solve(torch.cos, (X, X.numpy())), "torch tensors or numpy arrays, not both"),
    "batches that differ": (
        lambda: solve(torch.cos, (X, X[:1]), rows="independent"),
        r"one batch size as the first dimension of all, got z0\[0\] \(2, 3\), z0\[1\] \(1, 3\)",
    ),
    "rows of a number": (lambda: solve(torch.cos, X[0, 0], rows="independent"), "one batch size"),
    "rows of another name": (lambda: solve(torch.cos, X, rows="both"), "'independent' or 'joint', got 'both'"),
    "a start for a problem": (lambda: solve(Cosine(X), X), "a problem brings its own start; leave out z0"),
    "rows for a problem": (lambda: solve(FunctionProblem(torch.cos, X), rows="joint"), "leave out rows"),
}

FUNCTIONS = {
    "no function": (lambda: solve("cos", X), "f must be a function, got str"),
    "a chain without its start": (
        lambda: solve(linear_chain(seed=0), X),  # type: ignore[arg-type]
        r"LinearChain is a chain; its states are one problem: ChainProblem\(chain, x0\)",
    ),
    "another shape": (
        lambda: solve(lambda z: z[:, :2], X),
        r"f\(z\) must have the shape of z0, \(2, 3\), got \(2, 2\)",
    ),
    "a broadcast shape": (lambda: solve(lambda z: z.mean(), X), r"the shape of z0, \(2, 3\), got \(\)"),
    "another dtype": (lambda: solve(torch.Tensor.double, X), "the dtype of z0, torch.float32, got torch.float64"),
    "integer values": (lambda: solve(torch.Tensor.long, X), "floating-point dtype, got torch.int64"),
    "complex values": (
        lambda: solve(lambda z: z * 1j, X),
        "dtype of z0, torch.float32, got torch.complex64; for complex states start from a complex z0",
    ),
    "another device": (lambda: solve(lambda z: z.to("meta"), X), r"f\(z\) must be on cpu like z0, got meta"),
    "another structure": (lambda: solve(lambda z: (z, z), X), "must have the structure of z0"),
    "one of two": (lambda: solve(lambda z: {"a": z["a"]}, {"a": X, "b": X}), "must have the structure of z0"),
    "an array for a list": (
        lambda: solve(np.cos, [1.0, 2.0]),
        r"structure of z0, z0\[0\] a float, z0\[1\] a float, got f\(z\) \(2,\); for a function of arrays start from an",
    ),
    "nothing": (lambda: solve(lambda _: None, X), r"f\(z\) must be a tensor, an array or a float, got NoneType"),
    "an array for a tensor": (
        lambda: solve(lambda z: z.numpy(), X),
        r"f\(z\) must be a torch tensor like z0, got ndarray",
    ),
    "a tensor for an array": (
        lambda: solve(lambda z: torch.tensor(z), X.numpy()),
        r"f\(z\) must be a numpy array like z0, got Tensor",
    ),
    "another shape later on": (lambda: solve(later(lambda z: z[:1]), X), r"shape of z0, \(2, 3\), got \(1, 3\)"),
    "another dtype later on": (lambda: solve(later(torch.Tensor.half), X), "torch.float32, got torch.float16"),
    "another device later on": (lambda: solve(later(lambda z: z.to("meta")), X), "on cpu like z0, got meta"),
    "its argument changed": (lambda: solve(lambda z: z.mul_(0.5), X), "f changed its argument in place"),
    "no function to zero": (lambda: find_root(3, X), "g must be a function, got int"),
    "a root of another structure": (
        lambda: find_root(lambda z: z["a"], {"a": X, "b": X}),
        r"g\(z\) must have the struct",
    ),
    "a root of another length": (lambda: find_root(lambda z: z[:1], (X, X)), r"g\(z\) must have the structure of z0"),
    "a root of another shape": (lambda: find_root(lambda z: z.sum(), X), r"g\(z\) must have the shape of z0, \(2, 3\)"),
    "sign": (lambda: find_root(torch.cos, X, sign=0.0), "sign must not be zero"),
    "sign that is none": (lambda: find_root(torch.cos, X, sign=float("nan")), "sign must be a finite number, got nan"),
}

OPTIONS = {
    "memory": (lambda: Anderson(memory=0), "Anderson: memory must be at least 1, got 0"),
    "memory of Broyden": (lambda: Broyden(memory=-1), "Broyden: memory must be at least 1, got -1"),
    "half a column": (lambda: Anderson(memory=2.5), "memory must be an integer, got 2.5"),
    "true is no number": (lambda: Picard(relaxation=True), "relaxation must be a number, got True"),
    "relaxation": (lambda: Picard(relaxation=0.0), "relaxation must be greater than 0.0, got 0.0"),
    "relaxation that is none": (lambda: Picard(relaxation=float("nan")), "relaxation must be .*, got nan"),
    "a misspelt option": (lambda: Anderson(memroy=3), 'Anderson: memroy is no option; did you mean "memory"?'),
    "a misspelt option by name": (lambda: solve(torch.cos, X, solver={"name": "anderson", "memroy": 3}), '"memory"'),
    "a choice": (
        lambda: Anderson(mixing="rows"),
        "mixing must be one of 'auto', 'joint', 'triangular', 'block', got 'rows'",
    ),
    "an unknown solver": (
        lambda: solve(torch.cos, X, solver="andersen"),
        "unknown solver 'andersen'; did you mean \"anderson\"?",
    ),
    "a solver without a name": (lambda: solve(torch.cos, X, solver={"memory": 3}), "a solver requires a name"),
    "a solver's class": (
        lambda: solve(torch.cos, X, solver=Anderson),
        r"solver must be a name, a mapping or a Solver, got the class Anderson; call it: Anderson\(\)",
    ),
    "a gradient for a solver": (
        lambda: solve(torch.cos, X, solver=fixedpoint.OneStep()),
        "solver must be a name, a mapping or a Solver, got OneStep",
    ),
    "an unknown gradient": (
        lambda: solve(torch.cos, X, gradient="unroled"),
        "unknown gradient 'unroled'; did you mean \"unrolled\"?",
    ),
    "a gradient of arrays": (
        lambda: solve(np.cos, X.numpy(), gradient="unrolled"),
        "gradient requires a start of torch tensors, got numpy arrays",
    ),
    "a gradient of a float": (lambda: solve(np.cos, 1.0, gradient="one-step"), "torch tensors, got a float"),
    "rtol": (lambda: solve(torch.cos, X, rtol=-1.0), "Termination: rtol must be at least 0.0, got -1.0"),
    "all of it": (lambda: solve(torch.cos, X, rtol=1.0), "rtol must be less than 1.0, got 1.0"),
    "rtol that is none": (lambda: solve(torch.cos, X, rtol=float("nan")), "rtol must be .*, got nan"),
    "rtol in words": (lambda: solve(torch.cos, X, rtol="1e-6"), "rtol must be a number, got '1e-6'"),
    "max_rounds": (lambda: solve(torch.cos, X, max_rounds=0), "max_rounds must be at least 1, got 0"),
    "norm": (lambda: Termination(norm="l3"), "norm must be one of 'l2', 'rms', 'max', got 'l3'"),
    "a number for a rule": (
        lambda: solve(torch.cos, X, termination=1e-6),
        "termination must be a Termination, got 1e-06; for one tolerance say rtol=",
    ),
    "micro-batches of a function": (
        lambda: solve(torch.cos, X, max_batch=1),
        r"max_batch requires a problem whose rows can be taken \(a take method\), got FunctionProblem",
    ),
    "empty micro-batches": (lambda: solve(Cosine(X), max_batch=0), "max_batch must be at least 1, got 0"),
    "no listener": (lambda: solve(torch.cos, X, on_round=3), "on_round must be a function, got int"),
}

CHAINS = {
    "no batch": (lambda: ChainProblem(Halving(), X[0]), r"a batch dimension and at least one more, got shape \(3,\)"),
    "integers": (lambda: ChainProblem(Halving(), X.long()), "x0 must be of a floating-point dtype, got torch.int64"),
    "no steps": (lambda: ChainProblem(Halving(length=0), X), "a chain must have at least one step, got length 0"),
    "no chain": (lambda: ChainProblem(torch.cos, X), "chain must be a Chain, got builtin_function_or_method"),
    "empty micro-batches": (lambda: ChainProblem(Halving(), X, max_batch=0), "max_batch must be at least 1, got 0"),
    "a start that is not finite": (lambda: ChainProblem(Halving(), X / 0), "x0 must be finite, got 6 entries"),
    "another shape": (chained(lambda x: x[:, :1]), r"a step must return shape \(2, 3\), .* got \(2, 1\)"),
    "another dtype": (chained(torch.Tensor.double), "torch.float32 on cpu, got .* torch.float64 on cpu"),
    "another device": (chained(lambda x: x.to("meta")), "got .* on meta"),
    "nothing": (chained(lambda _: None), "a step must return a tensor, got NoneType"),
    "a chain solver for no chain": (lambda: solve(torch.cos, X, solver="chain"), "requires a (ChainProblem|chain)"),
    "serial for no chain": (lambda: solve(torch.cos, X, solver="serial"), "requires a chain"),
}

TABLE = {
    f"{group}: {name}": case
    for group, cases in (("start", STARTS), ("function", FUNCTIONS), ("option", OPTIONS), ("chain", CHAINS))
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_a_sentence(name: str) -> None:
    act, sentence = TABLE[name]
    with pytest.raises((TypeError, ValueError), match=sentence) as caught:
        act()
    assert len(str(caught.value).splitlines()) == 1


def test_options_are_refused_by_their_own_exception() -> None:
    with pytest.raises(OptionError) as caught:
        Anderson(memroy=3)
    assert caught.value.option == "memroy"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_a_tolerance_below_the_floor_of_the_dtype_ends_with_a_sentence(dtype: torch.dtype, solver: str) -> None:
    solution = solve(lambda z: 0.7 * z.sin() + 1.3, torch.ones(3, 5, dtype=dtype), solver=solver, rtol=1e-30)
    assert set(solution.status) <= {fixedpoint.Status.STALLED, fixedpoint.Status.CONVERGED}
    if fixedpoint.Status.STALLED in solution.status:
        assert f"the rounding of {dtype}".replace("torch.", "") in solution.message
        assert "take a wider dtype or a looser tolerance" in solution.message
    assert solution.counts.rounds < 120
