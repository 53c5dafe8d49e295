"""Gradients through pipelines in use: again, within ``no_grad``, through a problem of one's own; what is refused."""

from __future__ import annotations

import gc
import weakref

import diffusers
import pytest
import torch
from gradients_of_pipelines import apart, case, drawn, loss, serially, tight
from tiny_pipelines import pipeline

import fixedpoint
from fixedpoint import Implicit, Termination
from fixedpoint.chains import ChainProblem
from fixedpoint_diffusion import parallel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("form", ["affine", "steps"])
def test_a_graph_can_be_kept(form: str) -> None:
    of = case("sd1", by=("latents",))
    leaves = of.leaves()
    images = tight(of.pipe, form=form)(**of.arguments(), **leaves).images
    parts = list(leaves.values())
    first = torch.autograd.grad(loss(images), parts, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss(images), parts), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss(images), parts)


def test_other_calls_do_not_touch_a_graph() -> None:
    of = case("sd1", by=("latents",), scheduler=diffusers.DPMSolverMultistepScheduler.from_config(_levels()))
    sampler, leaves = tight(of.pipe), of.leaves()
    images = sampler(**of.arguments(), **leaves).images
    (before,) = torch.autograd.grad(loss(images), leaves["latents"], retain_graph=True)
    sampler(**{**of.arguments(), "num_inference_steps": 7}, **of.leaves())
    assert not any(_has_graph(value) for value in vars(of.pipe.scheduler).values())
    with torch.no_grad():
        of.pipe(**of.arguments(), **leaves)
    (after,) = torch.autograd.grad(loss(images), leaves["latents"])
    assert torch.equal(before, after)


def _levels() -> object:
    return pipeline("sd1").scheduler.config


def _has_graph(value: object) -> bool:
    parts = value if isinstance(value, list) else [value]
    return any(isinstance(part, torch.Tensor) and part.requires_grad for part in parts)


def test_within_no_grad_there_is_no_graph() -> None:
    of = case("sd1", by=("latents",))
    sampler, leaves = tight(of.pipe), of.leaves()
    with torch.no_grad():
        images = sampler(**of.arguments(), **leaves).images
    assert not images.requires_grad
    assert torch.allclose(images, serially(of, leaves))
    assert not parallel(of.pipe, solver="block-secant")(**of.arguments(), **leaves).images.requires_grad


def test_a_problem_solved_by_oneself() -> None:
    of = case("sd1", output_type="pt", by=("latents",), eta=1.0)
    leaves, noise = of.leaves(), drawn(2, 5, 4, 8, 8, seed=7).requires_grad_()
    sampler = tight(of.pipe)
    problem = sampler.problem(**of.arguments(), **leaves, noise=noise)
    solution = fixedpoint.solve(problem, solver="serial", gradient="chain-adjoint")
    found = torch.autograd.grad(loss(sampler.finish(problem, solution).images), [*leaves.values(), noise])
    own, draws = of.leaves(), noise.detach().requires_grad_()
    exact = torch.autograd.grad(loss(serially(of, own, draws)), [*own.values(), draws])
    for one, other in zip(found, exact, strict=True):
        assert float((one - other).norm() / other.norm()) <= 1e-5  # the adjoint chain is solved to 1e-6


def test_a_loss_of_samples_on_the_way() -> None:
    of = case("sd1", by=("latents",))
    leaves, sampler = of.leaves(), tight(of.pipe)
    problem = sampler.problem(**of.arguments(), **leaves)
    solution = fixedpoint.solve(problem, solver="serial", gradient="chain-adjoint")
    (found,) = torch.autograd.grad(loss(solution.samples[:, 2]), leaves["latents"])
    own, seen = of.leaves(), []
    serially(
        of, {**own, "callback_on_step_end": lambda _pipe, _step, _time, given: seen.append(given["latents"]) or given}
    )
    (exact,) = torch.autograd.grad(loss(seen[2]), own["latents"])
    assert float((found - exact).norm() / exact.norm()) <= 1e-5


def test_forms_without_an_adjoint_chain_are_refused_and_the_other_gradient_is_right() -> None:
    of = case("sd1", by=("latents", "guidance_scale"))
    with pytest.raises(TypeError, match=r"requires an affine recurrence, .* take gradient='implicit'"):
        tight(of.pipe, form="predictions")(**of.arguments(), **of.leaves())
    implicit = Implicit(termination=Termination(rtol=1e-10))
    for argument, off in apart(of, tight(of.pipe, form="predictions", gradient=implicit)).items():
        assert off <= 1e-9, argument


@pytest.mark.parametrize("kind", ["pil", "np"])
def test_images_that_are_no_tensors_are_refused_before_any_work(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = case("sd1", output_type=kind, by=("latents",))
    monkeypatch.setattr(of.pipe.unet, "forward", None)  # never called
    with pytest.raises(ValueError, match=f"pass output_type='pt' or 'latent', got '{kind}'"):
        tight(of.pipe)(**of.arguments(), **of.leaves())


def test_a_start_that_replays_cannot_begin_at_is_refused() -> None:
    of = case("img2img", steps=6)
    of.given["image"] = drawn(2, 4, 8, 8, seed=3)  # latents, which the pipeline adds noise to
    del of.fixed["image"]
    for argument, off in apart(of, tight(of.pipe)).items():
        assert off <= 1e-9, argument
    with pytest.raises(ValueError, match="Img2ImgPipeline requires a gradient, and replays can begin at given latents"):
        tight(of.pipe, form="steps")(**of.arguments(), **of.leaves())


def test_second_derivatives_are_refused() -> None:
    of = case("sd1", by=("latents",))
    leaves = of.leaves()
    images = tight(of.pipe)(**of.arguments(), **leaves).images
    (first,) = torch.autograd.grad(loss(images), leaves["latents"], create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        first.sum().backward()


def test_nothing_is_kept_of_a_call_whose_results_are_gone() -> None:
    of = case("sd1", by=("latents",))
    sampler = tight(of.pipe)
    problem = sampler.problem(**of.arguments(), **of.leaves())
    solution = fixedpoint.solve(problem, solver="serial", gradient="chain-adjoint")
    images = sampler.finish(problem, solution).images
    chain = weakref.ref(problem.chain)
    assert images.requires_grad
    del problem, solution, images
    gc.collect()
    assert chain() is None


def test_a_problem_may_start_from_another_solution() -> None:
    of = case("sd1", by=("latents",))
    leaves, sampler = of.leaves(), tight(of.pipe)
    problem = sampler.problem(**of.arguments(), **leaves)
    first = fixedpoint.solve(problem, solver="block-secant", rtol=1e-8)
    problem = ChainProblem(problem.chain, problem.x0, max_batch=problem.max_batch, start=first.z.detach())
    again = fixedpoint.solve(problem, solver="block-secant", rtol=1e-6, gradient="chain-adjoint")
    assert again.counts.rounds < first.counts.rounds
    assert torch.allclose(sampler.finish(problem, again).images, serially(of, leaves))
