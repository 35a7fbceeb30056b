"""The ten families: every MoE layer rewritten, one graph, results as precise as eager's."""

import pytest
import torch

import coxcompile
from tests.models import FAMILIES, build
from tests.numerics import float32_copy, median_token_error, relative_error


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 100, (2, 12), generator=generator) for _ in range(4)]


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [
        ("grouped_mm", torch.float32),
        ("grouped_mm", torch.bfloat16),
        ("batched_mm", torch.float32),
        # The rewritten graph is the same as grouped_mm's in bfloat16.
        pytest.param("batched_mm", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, implementation: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    model = build(family, dtype=dtype, experts_implementation=implementation)
    explanation = coxcompile.explain(model, input_ids=inputs()[0], use_cache=False)
    assert len(explanation.blocks) == FAMILIES[family].expected_moe_layers(), str(explanation)
    assert not explanation.skipped
    assert "mm_fallback" not in explanation.graphs["coalesce"]
    assert "_grouped_mm" not in explanation.graphs["coalesce"]

    compiled = torch.compile(model, backend="coxmoe", fullgraph=True)
    with torch.no_grad():
        ours = [compiled(input_ids=ids, use_cache=False).logits for ids in inputs()]
        eager = [model(input_ids=ids, use_cache=False).logits for ids in inputs()]
        if dtype == torch.float32:
            assert max(map(relative_error, ours, eager)) < 1e-5
        else:
            exact = float32_copy(model)
            reference = [exact(input_ids=ids, use_cache=False).logits for ids in inputs()]
            ours_error = median_token_error(torch.cat(ours), torch.cat(reference))
            assert ours_error <= 1.2 * median_token_error(torch.cat(eager), torch.cat(reference))
