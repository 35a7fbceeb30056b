"""Whole expert layers on the GPU: against grouped_mm's rounding, the same bits twice, opcheck."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_cases import Case, Figures
from gpu_check_variants import LARGE, MEDIUM, Size

import coxcompile.ops  # noqa: F401  (defines the operators)
from coxcompile.measurement.product_bench import relative_error
from coxcompile.measurement.random_experts import ExpertForm, RandomExperts
from coxcompile.measurement.random_tokens import popularity, random_tokens
from coxcompile.runtime.kernels.gpu.configurations import ExpertConfiguration, ProductConfiguration
from coxcompile.runtime.kernels.gpu.device import current_device
from coxcompile.runtime.kernels.gpu.experts import experts_subset_, run_experts_
from coxcompile.runtime.kernels.grouped import experts_subset_ as grouped_experts_subset_

GPT_OSS = ExpertForm(activation="swigluoai", gate_layout="interleaved", transposed=True, bias=True)
GREATER_ERROR = 1.2
"""Times grouped_mm's own error against float64: ours may be so large."""
_TILES = ProductConfiguration(block_outputs=64, block_inputs=64, warps=4, stages=3)
SMALL_TILES = ExpertConfiguration(block_tokens=16, gate_up=_TILES, down=_TILES)


def layer_cases(device: torch.device) -> list[Case]:
    """The op beside ``kernels.grouped``, determinism, and PyTorch's own check of the op."""
    cases = []
    for name, form in (
        ("bfloat16", ExpertForm()),
        ("float16", ExpertForm(weights="float16")),
        ("float32", ExpertForm(weights="float32")),
        ("GPT-OSS", GPT_OSS),
    ):
        check = partial(against_grouped, form, MEDIUM, device)
        cases.append(Case(f"experts_subset_ against grouped, {name}", check))
    check = partial(against_grouped, ExpertForm(), LARGE, device)
    cases.append(Case("experts_subset_ against grouped, Qwen3-30B-A3B's layer", check))
    for name, size in (("", MEDIUM), (", Qwen3-30B-A3B's layer", LARGE)):
        cases.append(Case(f"the same bits twice{name}", partial(repeated, size, device)))
        cases.append(Case(f"the same bits in half the batch{name}", partial(halved, size, device)))
    return [*cases, Case("opcheck of experts_subset_", partial(checked_by_torch, device))]


def against_grouped(form: ExpertForm, size: Size, device: torch.device) -> Figures:
    """The op's error over grouped's, both against float64; experts of every fourth id elsewhere."""
    layer = _Layer(form, size, device)
    slots = torch.arange(size.experts, device=device)
    slots[::4] = -1
    known = torch.where(slots[layer.ids] >= 0, layer.ids, -1)
    exact = layer.experts.exact(layer.hidden_states, known, layer.routing_weights)
    before = torch.randn(size.tokens, size.hidden, device=device)
    errors = {}
    for name, implementation in (("ours", experts_subset_), ("grouped", grouped_experts_subset_)):
        output = before.clone()
        implementation(output, *layer.arguments(slots), **layer.options)
        errors[name] = relative_error(output.double() - before.double(), exact)
        untouched = (known < 0).all(1)
        if not torch.equal(output[untouched], before[untouched]):
            raise AssertionError(f"{name} changed rows of tokens that chose no expert that is here")
    # What sums in float32 add to a random number is rounded, in float32 layers as much as ours.
    bound = max(GREATER_ERROR * errors["grouped"], 1e-6)
    return {"error": errors["ours"], "bound": bound, "grouped": errors["grouped"]}


def repeated(size: Size, device: torch.device) -> Figures:
    """How many numbers differ between two runs, the second beside other work on the device."""
    layer = _Layer(ExpertForm(), size, device)
    first = layer.run(slice(None))
    other = _Layer(ExpertForm(), size, device)
    if device.type == "cuda":
        new_stream: Callable[..., torch.cuda.Stream] = torch.cuda.Stream
        with torch.cuda.stream(new_stream(device)):
            other.run(slice(None))
    second = layer.run(slice(None))
    return _different(first, second)


def halved(size: Size, device: torch.device) -> Figures:
    """How many numbers differ between a half of the tokens and the same in the whole batch."""
    layer = _Layer(ExpertForm(), size, device)
    half = slice(1, None, 2)
    return _different(layer.run(slice(None))[half], layer.run(half))


def checked_by_torch(device: torch.device) -> Figures:
    """``torch.library.opcheck``, which raises."""
    layer = _Layer(ExpertForm(), MEDIUM, device)
    slots = torch.arange(MEDIUM.experts, device=device)
    output = torch.zeros(MEDIUM.tokens, MEDIUM.hidden, device=device)
    operator = torch.ops.coxmoe.experts_subset_.default
    torch.library.opcheck(operator, (output, *layer.arguments(slots)), layer.options)
    return {}


class _Layer:
    def __init__(self, form: ExpertForm, size: Size, device: torch.device) -> None:
        torch.manual_seed(size.tokens)
        self.form = form
        self.experts = RandomExperts(form, size.experts, size.hidden, size.intermediate, device)
        likely = popularity("skewed", size.experts, size.top_k, device)
        sizes = (size.tokens, size.hidden, size.top_k, form.dtype)
        self.hidden_states, self.ids, self.routing_weights = random_tokens(*sizes, likely)
        self.options: dict[str, Any] = {
            "activation": form.activation,
            "gate_layout": form.gate_layout,
            "transposed": form.transposed,
            "alpha": form.gating.alpha,
            "limit": form.gating.limit,
        }

    def arguments(self, slots: torch.Tensor) -> tuple[Any, ...]:
        """Of the op, after the output."""
        gate_up, down = self.experts.gate_up, self.experts.down
        tokens = (self.hidden_states, self.ids, self.routing_weights, slots)
        return (*tokens, gate_up.stored, down.stored, gate_up.bias, down.bias)

    def run(self, tokens: slice) -> torch.Tensor:
        """With tiles that do not depend on the number of tokens."""
        hidden_states = self.hidden_states[tokens]
        output = torch.full_like(hidden_states, float("nan"))
        run_experts_(
            *(output, hidden_states, self.ids[tokens], self.routing_weights[tokens]),
            *(self.experts.weights(), self.form.gating, SMALL_TILES, current_device()),
            add=False,
        )
        return output


def _different(first: torch.Tensor, second: torch.Tensor) -> Figures:
    return {"error": float((first != second).sum()), "bound": 0.0}
