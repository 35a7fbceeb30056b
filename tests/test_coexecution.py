"""Models divided between the emulated accelerator and the CPU compute what they do without it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coxcompile.planner.policies import POLICIES
from coxcompile.runtime import emulated
from coxcompile.runtime.session import Session
from tests import coexecution_cases
from tests.coexecution_cases import (
    Outputs,
    Variants,
    build_layers,
    emulated_options,
    mixed_plan,
    prefill_and_decode,
    released,
    splits,
    token_ids,
    weight_bytes,
)
from tests.models import FAMILIES, build, build_dense
from tests.numerics import float32_copy, median_token_error, relative_error

clean_device = coexecution_cases.clean_device_fixture
eager_partitions = coexecution_cases.eager_partitions_fixture

MOE_LAYERS = 3
"""MoE-Lightning and FlexGen fetch into room for two layers: a model of two would stay whole."""

VRAM_SHARES = {"coxmoe": 0.6, "moe-lightning": 1.0, "flexgen": 1.0}
"""Of the model's weights, for policies by name."""

OTHERS = {
    **{"moe-gen": ("qwen2_moe", 1.0), "cpu-only": ("olmoe", 0.5), "gpu-only": ("mixtral", 1.1)},
    "best": ("granitemoe", 0.6),
}
"""For each other policy a family, and the share of its weights."""

ALONE = {"accelerator": "none"}
EXPERTS = 16
LARGE = 8 << 20


def divided(
    model: nn.Module, policy: str, share: float, variants: Variants, session: Session, vram: int
) -> Outputs:
    """What the policy's plan computes, within ``vram``; released at the end."""
    variants.chosen = policy
    with released(session):
        outputs = prefill_and_decode(variants.model, model.config)
        assert len(session.executions) == 3
        assert max(call.traffic.peak_bytes for call in session.executions) <= vram
    return outputs


def run_policies(
    family: str, dtype: torch.dtype, shares: dict[str, float]
) -> tuple[nn.Module, Outputs, dict[str, Outputs], dict[str, Session]]:
    """The model, its outputs on the CPU alone and with each policy, and the policies' sessions."""
    model = build_layers(family, MOE_LAYERS, dtype=dtype)
    sessions = {policy: Session(record=True) for policy in shares}
    vram = {policy: int(share * weight_bytes(model)) for policy, share in shares.items()}
    options = {p: emulated_options(sessions[p], vram[p], p) for p in shares}
    variants = Variants(model, {"none": ALONE, **options}, dynamic=False)
    alone = prefill_and_decode(variants.model, model.config)
    outputs = {
        policy: divided(model, policy, shares[policy], variants, sessions[policy], vram[policy])
        for policy in shares
    }
    return model, alone, outputs, sessions


def require_equal(actual: Outputs, expected: Outputs) -> None:
    assert max(map(relative_error, actual.all(), expected.all())) < 1e-5


def require_as_precise_as_eager(model: nn.Module, outputs: Outputs) -> None:
    """Against float32: logits of all steps, tokens' medians, at most 1.2 times eager's error."""
    exact = float32_copy(model)
    reference = _tokens(prefill_and_decode(exact, exact.config))
    eager = _tokens(prefill_and_decode(model, model.config))
    error = median_token_error(_tokens(outputs), reference)
    assert error <= 1.2 * median_token_error(eager, reference)


def _tokens(outputs: Outputs) -> Tensor:
    return torch.cat(outputs.logits, dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_under_three_policies(family: str, eager_partitions: None) -> None:
    _, alone, outputs, sessions = run_policies(family, torch.float32, VRAM_SHARES)
    for policy in VRAM_SHARES:
        require_equal(outputs[policy], alone)
        found = splits(sessions[policy])
        assert all(split.resident < split.experts for split in found)
        assert any(split.migrating for split in found)


@pytest.mark.parametrize(
    ("family", "policy"), [("qwen3_moe", "coxmoe"), ("mixtral", "moe-lightning")]
)
def test_compiled_partitions_in_bfloat16(family: str, policy: str) -> None:
    shares = {policy: VRAM_SHARES[policy]}
    model, _, outputs, sessions = run_policies(family, torch.bfloat16, shares)
    assert any(split.migrating for split in splits(sessions[policy]))
    require_as_precise_as_eager(model, outputs[policy])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_with_compiled_partitions(family: str, dtype: torch.dtype) -> None:
    model, alone, outputs, _ = run_policies(family, dtype, VRAM_SHARES)
    for policy in VRAM_SHARES:
        if dtype == torch.float32:
            require_equal(outputs[policy], alone)
        else:
            require_as_precise_as_eager(model, outputs[policy])


def test_every_policy_is_tested() -> None:
    assert {*VRAM_SHARES, *OTHERS} == set(POLICIES)


@pytest.mark.parametrize("policy", OTHERS)
def test_other_policies(policy: str, eager_partitions: None) -> None:
    family, share = OTHERS[policy]
    _, alone, outputs, _ = run_policies(family, torch.float32, {policy: share})
    require_equal(outputs[policy], alone)


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_odd_sizes(family: str, eager_partitions: None) -> None:
    model = build(family, dtype=torch.float32, layers=1, odd=True)
    experts = next(
        getattr(model.config, name)
        for name in ("num_local_experts", "num_experts", "n_routed_experts")
        if getattr(model.config, name, None)
    )
    with released(Session()) as session:
        plan = mixed_plan(experts, 1, micro_batch=2, attention="gpu", kv_gpu_share=0.5)
        compiled = compile_for(model, session, plan)
        actual = prefill_and_decode(compiled, model.config, batch=3, length=11)
        require_equal(actual, prefill_and_decode(model, model.config, batch=3, length=11))


def compile_for(model: nn.Module, session: Session, plan: Any, **keywords: Any) -> Any:
    return torch.compile(
        model,
        backend="coxmoe",
        fullgraph=True,
        options=emulated_options(session, LARGE, plan),
        **keywords,
    )


def tiny() -> nn.Module:
    return build("qwen3_moe", dtype=torch.float32, layers=1)


def logits_of(model: Any, ids: Tensor, **keywords: Any) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False, **keywords).logits
    return logits


def require_same_logits(compiled: Any, model: Any, ids: Tensor, **keywords: Any) -> None:
    actual, expected = logits_of(compiled, ids, **keywords), logits_of(model, ids, **keywords)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("dynamic", [None, True, False])
@torch.no_grad()
def test_other_sizes_in_later_calls(dynamic: bool | None, eager_partitions: None) -> None:
    """Also batches of one, and smaller than a micro-batch."""
    model = tiny()
    with released(Session()) as session:
        compiled = compile_for(model, session, mixed_plan(EXPERTS, 1), dynamic=dynamic)
        for batch, length in ((4, 12), (4, 9), (1, 9), (3, 1), (4, 12)):
            require_same_logits(compiled, model, token_ids(batch, length, seed=batch))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_mode(mode: Any, eager_partitions: None) -> None:
    """Caches made in it count no changes, so the accelerator's copies of them are made anew."""
    model = tiny()
    with released(Session()) as session, mode():
        plan = mixed_plan(EXPERTS, 1, attention="gpu", kv_gpu_share=1.0)
        actual = prefill_and_decode(compile_for(model, session, plan), model.config, steps=3)
        require_equal(actual, prefill_and_decode(model, model.config, steps=3))


@torch.no_grad()
def test_attention_masks(eager_partitions: None) -> None:
    model = tiny()
    ids = token_ids(4, 10)
    mask = torch.ones_like(ids)
    mask[1, :3] = mask[3, :7] = 0
    for attention in ("cpu", "gpu"):
        torch._dynamo.reset()
        with released(Session()) as session:
            compiled = compile_for(model, session, mixed_plan(EXPERTS, 1, attention=attention))
            require_same_logits(compiled, model, ids, attention_mask=mask)
            require_same_logits(compiled, model, ids, attention_mask=mask.flip(0))
    assert relative_error(logits_of(model, ids, attention_mask=mask), logits_of(model, ids)) > 0.01


class Aliasing(nn.Module):
    """Returns inputs, views of them and a result twice, and changes inputs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny()

    def forward(self, ids: Tensor, counter: Tensor, log: Tensor) -> tuple[Tensor, ...]:
        logits = logits_of(self.model, ids)
        last = logits[:, -1]
        counter.add_(1)
        log[:, 1:3].copy_(last[:, :2])
        return logits, logits, last, ids, ids[:, 2:], counter, log[:, 1]


@torch.no_grad()
def test_aliases_and_changed_inputs(eager_partitions: None) -> None:
    module = Aliasing()
    ids = token_ids(4, 10)
    state = {kind: (torch.zeros(1), torch.zeros(4, 5)) for kind in ("compiled", "eager")}
    with released(Session()) as session:
        compiled = compile_for(module, session, mixed_plan(EXPERTS, 1))
        kept = []
        for step in range(1, 4):
            actual = compiled(ids, *state["compiled"])
            expected = module(ids, *state["eager"])
            assert max(map(relative_error, actual, expected)) < 1e-5
            assert max(map(relative_error, state["compiled"], state["eager"])) < 1e-5
            assert state["compiled"][0].item() == step
            assert actual[0] is actual[1]
            assert actual[3] is ids
            assert actual[4].data_ptr() == ids[:, 2:].data_ptr()
            assert actual[5] is state["compiled"][0]
            kept.append((actual[0], actual[0].clone()))
            ids = token_ids(4, 10, seed=step)
        for result, before in kept:
            assert torch.equal(result, before), "a later call has overwritten a result"


@torch.no_grad()
def test_one_tensor_as_two_inputs(eager_partitions: None) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny()

        def forward(self, ids: Tensor, first: Tensor, second: Tensor) -> Tensor:
            first.add_(1)
            return logits_of(self.model, ids) * second

    module = Twice()
    with released(Session()) as session:
        compiled = compile_for(module, session, mixed_plan(EXPERTS, 1))
        ours, eager = torch.ones(1), torch.ones(1)
        for _ in range(2):
            actual = compiled(token_ids(4, 8), ours, ours)
            assert relative_error(actual, module(token_ids(4, 8), eager, eager)) < 1e-5
            assert torch.equal(ours, eager)


@torch.no_grad()
def test_two_models_take_turns_in_one_session(eager_partitions: None) -> None:
    models = [tiny(), build("olmoe", dtype=torch.float32, layers=2)]
    with released(Session()) as session:
        compiled = [
            compile_for(model, session, mixed_plan(EXPERTS, layers))
            for layers, model in enumerate(models, start=1)
        ]
        for seed in range(3):
            for ours, model in zip(compiled, models, strict=True):
                require_same_logits(ours, model, token_ids(4, 8, seed))


@torch.no_grad()
def test_one_graph_with_the_weights_of_several_modules(eager_partitions: None) -> None:
    first, second = tiny(), tiny()
    for parameter in second.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    with released(Session()) as session:
        plan = mixed_plan(EXPERTS, 1)
        captured = Variants(first, {"ours": emulated_options(session, LARGE, plan)}, dynamic=False)
        ids = token_ids(4, 8)
        require_same_logits(captured.model, first, ids)
        graph = captured.compiled["ours"]
        inputs = captured.inputs
        others = dict(zip(map(id, first.parameters()), second.parameters(), strict=True))
        swapped = [others.get(id(value), value) for value in inputs]
        assert sum(a is not b for a, b in zip(inputs, swapped, strict=True)) > 10
        for _ in range(2):
            assert relative_error(graph(*swapped)[0], logits_of(second, ids)) < 1e-5
            assert relative_error(graph(*inputs)[0], logits_of(first, ids)) < 1e-5


@torch.no_grad()
def test_new_weights_between_calls(eager_partitions: None) -> None:
    model = tiny()
    ids = token_ids(4, 8)
    with released(Session()) as session:
        compiled = compile_for(model, session, mixed_plan(EXPERTS, 1))
        for scale in (1.0, 0.7, 1.3):
            model.load_state_dict({k: scale * v for k, v in model.state_dict().items()})
            require_same_logits(compiled, model, ids)
        assert len(session.executors) == 1


@torch.no_grad()
def test_one_thread(eager_partitions: None) -> None:
    model = tiny()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with released(Session()) as session:
            compiled = compile_for(model, session, mixed_plan(EXPERTS, 1))
            require_same_logits(compiled, model, token_ids(4, 8))
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_a_model_without_experts_runs_on_the_cpu(
    eager_partitions: None, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_dense(dtype=torch.float32, layers=1)
    session = Session()
    compiled = compile_for(model, session, "coxmoe")
    require_same_logits(compiled, model, token_ids(2, 8))
    assert "without an MoE block" in caplog.text
    assert not session.executors
    assert emulated.statistics().allocated_bytes == 0
