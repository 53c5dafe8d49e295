"""The checks of gradient estimators, in the order they run. The docstring of a check is the explanation users see."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from fixedpoint.api import solve
from fixedpoint.gradients.report import AdjointReport
from fixedpoint.testing.bench import NotApplicableError, require
from fixedpoint.testing.checks.table import Check
from fixedpoint.testing.gradients.bench import GradientBench, mapped, relative

__all__ = ["GRADIENT_CHECKS"]

GRADIENT_CHECKS: dict[str, Check[GradientBench]] = {}
"""All checks of gradient estimators by name, in the order they run."""

# The error that backpropagation through a converged iteration leaves.
_TOLERANCE = 1e-6
_REFUSAL = re.compile("differentiat|derivative|second order|double backward|grad_fn", re.IGNORECASE)


def check(name: str) -> Callable[[Callable[[GradientBench], str]], Callable[[GradientBench], str]]:
    """Add a function to the table."""

    def enter(body: Callable[[GradientBench], str]) -> Callable[[GradientBench], str]:
        GRADIENT_CHECKS[name] = Check(name, body)
        return body

    return enter


@check("value-kept")
def value_kept(bench: GradientBench) -> str:
    """A solution with a gradient equals the solution without one.

    It does so bit for bit, or to rounding if autograd has to record the iterations, which are then not done in place.
    """
    problem = bench.cell()
    constant = mapped(problem, problem.weight, problem.offset)
    plain = bench.solve(constant, problem.start, rtol=1e-9, gradient=False)
    solution = bench.solve(
        mapped(problem, problem.weight.clone().requires_grad_(), problem.offset), problem.start, rtol=1e-9
    )
    gap = relative(solution.state.detach(), plain.state)
    require(gap <= (1e-12 if bench.estimator.runs_forward else 0.0), f"the value differs by {gap:.1e}")
    require(solution.state.requires_grad, "the solution does not require a gradient")
    return "the same value"


@check("closed-form")
def closed_form(bench: GradientBench) -> str:
    """On affine maps the gradient equals that of (I - A)^{-1} b: u = (I - A^T)^{-1} g for b, and u z^T for A."""
    problem = bench.affine()
    g = bench.cotangent(problem)
    u = torch.linalg.solve(torch.eye(g.shape[1], dtype=g.dtype, device="cpu") - problem.matrix.mT, g)
    by_matrix, by_offset = bench.gradient(problem, g)
    gap = max(relative(by_offset, u), relative(by_matrix, u.unsqueeze(2) * problem.solution.unsqueeze(1)))
    require(gap <= _TOLERANCE, f"a relative error of {gap:.1e}")
    return f"relative error {gap:.0e}"


@check("differences")
def differences(bench: GradientBench) -> str:
    """On a tanh cell the gradient along a direction equals the central difference of solutions that are solved anew."""
    problem = bench.cell()
    g, step = bench.cotangent(problem), 1e-5
    direction = bench.cotangent(problem, seed=24)
    moved = []
    for sign in (1.0, -1.0):
        f = mapped(problem, problem.weight, problem.offset + sign * step * direction)
        moved.append(solve(f, problem.start, rows="independent", rtol=1e-14, max_rounds=300).state)
    by_difference = ((moved[0] - moved[1]) * g).sum() / (2 * step)
    found = (bench.gradient(problem, g)[1] * direction).sum()
    gap = relative(found, by_difference)
    require(gap <= 1e-5, f"differs by {gap:.1e}")
    return f"relative difference {gap:.0e}"


@check("solver-independent")
def solver_independent(bench: GradientBench) -> str:
    """The gradient depends on the solution, not on the solver that found it."""
    if not bench.others:
        raise NotApplicableError("no other solver provides what the estimator needs")
    problem = bench.cell()
    g = bench.cotangent(problem)
    reference = bench.gradient(problem, g)
    for solver in bench.others:
        gap = max(map(relative, bench.gradient(problem, g, solver), reference))
        require(gap <= _TOLERANCE, f"differs by {gap:.1e} after {solver!r}")
    return f"{len(bench.others) + 1} solvers"


@check("tiny-cotangents")
def tiny_cotangents(bench: GradientBench) -> str:
    """The gradient is linear in the cotangent, however small that is: 1e-13 in float32, 1e-200 in float64.

    With an absolute tolerance, or a norm that underflows, such gradients vanish or become NaN.
    """
    for dtype, factor, tolerance in ((torch.float32, 1e-13, 1e-4), (torch.float64, 1e-200, 1e-9)):
        problem = bench.affine().astype(dtype)
        g = bench.cotangent(problem)
        whole, tiny = bench.gradient(problem, g)[1], bench.gradient(problem, g * factor)[1]
        gap = relative(tiny.double() / factor, whole)
        require(gap <= tolerance, f"{dtype}: differs by {gap:.1e} at {factor:g}")
    return "1e-13 in float32, 1e-200 in float64"


@check("zero-cotangents")
def zero_cotangents(bench: GradientBench) -> str:
    """A row whose cotangent is zero has a gradient of zero, and does not change the gradients of the other rows."""
    problem = bench.affine()
    g = bench.cotangent(problem)
    some = g.clone()
    some[1] = 0.0
    whole, part = bench.gradient(problem, g), bench.gradient(problem, some)
    none = bench.gradient(problem, torch.zeros_like(g))
    require(all(bool((each == 0).all()) for each in none), "a cotangent of zeros gives a gradient that is not zero")
    for one, other in zip(whole, part, strict=True):
        require(bool((other[1] == 0).all()), "the row without a cotangent has a gradient")
        gap = relative(other[[0, 2, 3]], one[[0, 2, 3]])
        require(gap <= 1e-9, f"the other rows differ by {gap:.1e}")
    return "zeros, exactly"


@check("rows")
def rows(bench: GradientBench) -> str:
    """A row has the same gradient as when it is solved alone, whatever the cotangents of the other rows."""
    problem = bench.cell()
    g = bench.cotangent(problem) * torch.tensor([[1.0], [1e6], [1.0], [1e-6]], dtype=torch.float64, device="cpu")
    whole = bench.gradient(problem, g)
    for row in range(len(g)):
        index = torch.tensor([row], device="cpu")
        alone = bench.gradient(problem.take(index), g[index])
        gap = max(relative(one[row], other[0]) for one, other in zip(whole, alone, strict=True))
        require(gap <= _TOLERANCE, f"row {row} differs by {gap:.1e}")
    return "as alone"


@check("two-forwards")
def two_forwards(bench: GradientBench) -> str:
    """Two solves of one function before one backward pass give the sum of their gradients."""
    problem = bench.cell()
    g = bench.cotangent(problem)
    weight = problem.weight.clone().requires_grad_()
    first = bench.solve(mapped(problem, weight, problem.offset), problem.start)
    second = bench.solve(mapped(problem, weight, 0.5 * problem.offset), problem.start)
    (both,) = torch.autograd.grad([first.state, second.state], weight, [g, 2 * g])
    apart = torch.zeros_like(both)
    for offset, cotangent in ((problem.offset, g), (0.5 * problem.offset, 2 * g)):
        solution = bench.solve(mapped(problem, weight, offset), problem.start)
        apart += torch.autograd.grad(solution.state, weight, cotangent)[0]
    gap = relative(both, apart)
    require(gap <= 1e-9, f"differs from the sum by {gap:.1e}")
    return "the sum of both"


@check("nested-forwards")
def nested_forwards(bench: GradientBench) -> str:
    """A solution that is an input of another problem passes the gradient on, according to the chain rule."""
    problem = bench.affine()
    g = bench.cotangent(problem)
    first, _, offset = bench.solution(problem)
    second = bench.solve(mapped(problem, problem.matrix, torch.sin(first.state)), problem.start)
    (whole,) = torch.autograd.grad(second.state, offset, g)
    third, _, inner = bench.solution(problem)
    by_inner = bench.gradient(dataclasses.replace(problem, offset=torch.sin(third.state.detach())), g)[1]
    (apart,) = torch.autograd.grad(third.state, inner, by_inner * torch.cos(third.state.detach()))
    gap = relative(whole, apart)
    require(gap <= 1e-9, f"differs by {gap:.1e}")
    return "the chain rule"


@check("repeated-backward")
def repeated_backward(bench: GradientBench) -> str:
    """A backward pass with retain_graph can be repeated, also with another cotangent, and gives the right gradient."""
    problem = bench.cell()
    g, other = bench.cotangent(problem), bench.cotangent(problem, seed=25)
    solution, *coefficients = bench.solution(problem)
    passes = [torch.autograd.grad(solution.state, coefficients, each, retain_graph=True) for each in (g, other, g)]
    for found, cotangent in zip(passes, (g, other, g), strict=True):
        gap = max(map(relative, found, bench.gradient(problem, cotangent)))
        require(gap <= 1e-9, f"differs by {gap:.1e}")
    return "three passes"


@check("second-derivatives")
def second_derivatives(bench: GradientBench) -> str:
    """Second derivatives are either right or refused with an exception, never silently wrong.

    For z = a z + b they are 2 b / (1 - a)^3 (twice by a) and 1 / (1 - a)^2 (by a and b).
    """
    a = torch.tensor([[0.5], [-0.3]], dtype=torch.float64, requires_grad=True, device="cpu")
    b = torch.tensor([[2.0], [1.0]], dtype=torch.float64, requires_grad=True, device="cpu")
    solution = bench.solve(lambda z: a * z + b, torch.zeros(2, 1, dtype=torch.float64, device="cpu"))
    try:
        (first,) = torch.autograd.grad(solution.state.sum(), a, create_graph=True)
        found = torch.autograd.grad(first.sum(), (a, b), allow_unused=True, materialize_grads=True)
    except RuntimeError as refusal:
        # Torch raises RuntimeError for all kinds of errors; it is a refusal only if the message is about derivatives.
        if not _REFUSAL.search(str(refusal)):
            raise
        return f"refused: {str(refusal).splitlines()[0]}"
    with torch.no_grad():
        exact = 2 * b / (1 - a) ** 3, 1 / (1 - a) ** 2
    gap = max(map(relative, found, exact))
    require(gap <= 1e-5, f"neither right nor refused: a relative error of {gap:.1e}")
    return f"right, relative error {gap:.0e}"


@check("constants")
def constants(bench: GradientBench) -> str:
    """The solution requires no gradient if gradients are off or nothing the function depends on requires one."""
    problem = bench.cell()
    constant = bench.solve(problem.__call__, problem.start)
    require(not constant.state.requires_grad, "the solution of a function of constants requires a gradient")
    with torch.no_grad():
        off = bench.solution(problem)[0]
    require(not off.state.requires_grad, "the solution requires a gradient though gradients are off")
    return "no gradient where there is none"


@check("start")
def start(bench: GradientBench) -> str:
    """The solution does not depend on the start: the gradient by the start is zero, to the tolerance of the solve."""
    problem = bench.affine()
    beginning = problem.start.clone().requires_grad_()
    solution = bench.solve(mapped(problem, problem.matrix.clone().requires_grad_(), problem.offset), beginning)
    g = bench.cotangent(problem)
    (found,) = torch.autograd.grad(solution.state, beginning, g, allow_unused=True, materialize_grads=True)
    size = float(found.norm() / g.norm())
    require(size <= _TOLERANCE, f"is {size:.1e} of the cotangent")
    return "zero" if size == 0 else f"{size:.0e} of the cotangent"


@check("structure")
def structure(bench: GradientBench) -> str:
    """A state given as two tensors has the same gradient as the state given as one tensor."""
    problem = bench.cell()
    g = bench.cotangent(problem)
    weight = problem.weight.clone().requires_grad_()
    whole = mapped(problem, weight, problem.offset)

    def f(z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        value = whole(torch.cat(z, dim=1))
        return value[:, :2], value[:, 2:]

    parts = problem.start[:, :2], problem.start[:, 2:]
    (found,) = torch.autograd.grad(bench.solve(f, parts).z, weight, (g[:, :2], g[:, 2:]))
    gap = relative(found, bench.gradient(problem, g)[0])
    require(gap <= 1e-9, f"differs by {gap:.1e}")
    return "tensor and tuple"


@check("single-precision")
def single_precision(bench: GradientBench) -> str:
    """In float32 the gradient is float32, and equals the float64 gradient up to rounding."""
    problem = bench.affine()
    g = bench.cotangent(problem)
    wide, narrow = bench.gradient(problem, g), bench.gradient(problem.astype(torch.float32), g.float())
    require(all(each.dtype == torch.float32 for each in narrow), f"is {narrow[0].dtype}")
    gap = max(map(relative, narrow, wide))
    require(gap <= 1e-3, f"differs by {gap:.1e}")
    return f"differs by {gap:.0e}"


@check("reported")
def reported(bench: GradientBench) -> str:
    """An adjoint report, if there is one, is empty before the backward pass and correct after it."""
    problem = bench.affine()
    g = bench.cotangent(problem)
    solution, _, offset = bench.solution(problem)
    report = solution.extras.get("adjoint")
    if not isinstance(report, AdjointReport) or not bench.has_equation:
        raise NotApplicableError("the estimator makes no report of the adjoint equation of a fixed point")
    require(report.backwards == 0 and not report.metrics(), f"is not empty before a backward pass: {report!r}")
    (u,) = torch.autograd.grad(solution.state, offset, g)  # the derivative by the offset is u itself
    require(report.backwards == 1, f"says that {report.backwards} backward passes ran, not one")
    left = (problem.matrix.mT * u.unsqueeze(1)).sum(-1) + g - u
    real = left.norm(dim=1) / u.norm(dim=1)
    for row, said in enumerate(report.relative_error.tolist()):
        honest = math.isnan(said) or abs(said - float(real[row])) <= 0.1 * float(real[row]) + 1e-12
        require(honest, f"row {row} reports an error of {said:.1e}, it has {float(real[row]):.1e}")
    require(int(report.products.min()) >= 0 and len(report.products) == len(u), "products are not counted row by row")
    return f"{report!r}"


@check("options")
def options(bench: GradientBench) -> str:
    """The estimator is a frozen, hashable value that can be rebuilt from its options.

    Records and cell hashes rely on this.
    """
    estimator = bench.estimator
    kind = type(estimator)
    require(dataclasses.is_dataclass(estimator), f"{kind.__name__} is no dataclass")
    require(kind.__dataclass_params__.frozen, f"{kind.__name__} is not frozen")  # type: ignore[attr-defined]
    fields = {field.name: getattr(estimator, field.name) for field in dataclasses.fields(estimator) if field.init}  # type: ignore[arg-type]
    for rebuilt in (kind(**fields), copy.deepcopy(estimator)):
        require(rebuilt == estimator, f"rebuilt as {rebuilt!r} from {estimator!r}")
        require(hash(rebuilt) == hash(estimator), "equal estimators have different hashes")
    return "rebuilt from its options"
