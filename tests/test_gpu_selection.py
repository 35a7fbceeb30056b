"""Which configurations may be defaults, and which of them are chosen; compiled where it says so."""

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
from triton import knobs

from coxcompile.gpu_analysis.analysis import Analysis, analyse, objection
from coxcompile.gpu_analysis.bounds import bounds
from coxcompile.gpu_analysis.candidates import candidates, estimated_seconds
from coxcompile.gpu_analysis.compiling import PLAIN, Form, compiled_product, other_forms
from coxcompile.gpu_analysis.expected_routing import ExpertLayer
from coxcompile.gpu_analysis.machine_code import MachineCode, Resources, machine_code, resources
from coxcompile.gpu_analysis.matrix_instructions import MatrixWork
from coxcompile.gpu_analysis.occupancy import Occupancy
from coxcompile.gpu_analysis.prediction import predict
from coxcompile.gpu_analysis.products import PRODUCTS, Product, ProductName, products
from coxcompile.gpu_analysis.routing_kernels import compiled_routing_kernels
from coxcompile.gpu_analysis.selection import BUCKETS, best, cases, rows
from coxcompile.gpu_analysis.targets import TARGETS, MmaKind, Target
from coxcompile.runtime.kernels.gpu.configurations import ProductConfiguration

A100, H100, B200 = TARGETS["sm_80"], TARGETS["sm_90"], TARGETS["sm_100"]
QWEN3 = ExpertLayer(name="qwen3-30b-a3b", experts=128, top_k=8, hidden=2048, intermediate=768)
MIXTRAL = ExpertLayer(name="mixtral-8x7b", experts=8, top_k=2, hidden=4096, intermediate=14336)


def configuration(
    outputs: int = 64, inputs: int = 64, warps: int = 4, stages: int = 3
) -> ProductConfiguration:
    return ProductConfiguration(
        block_outputs=outputs, block_inputs=inputs, warps=warps, stages=stages
    )


def made_up(
    product: Product,
    block_tokens: int,
    of: ProductConfiguration,
    *,
    stack_bytes: int = 0,
    ctas: int = 2,
    kind: MmaKind = "HMMA",
    ratio: float = 1.0,
    instructions: int = 100,
) -> Analysis:
    flops = int(ratio * product.tile_flops(of, block_tokens))
    return Analysis(
        configuration=of,
        block_tokens=block_tokens,
        resources=Resources(
            warps=of.warps,
            registers=128,
            stack_bytes=stack_bytes,
            shared_bytes=49152,
            tensor_memory_columns=0,
            occupancy=Occupancy(ctas=ctas, share=0.125 * ctas, limiter="registers"),
        ),
        code=MachineCode(
            spill_bytes=2 * stack_bytes,
            asynchronous_copies={},
            matrix=MatrixWork(kind=kind, flops=flops),
            loop_instructions=instructions,
            loop_shared_bytes=1024,
        ),
        mma_flops_ratio=ratio,
    )


GATE_UP, DOWN = products(QWEN3, "bfloat16")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, None),
        ({"stack_bytes": 8}, r"spills registers, 8 bytes a thread"),
        ({"ctas": 0}, r"does not fit: registers"),
        ({"kind": "none"}, r"multiplies by none, not by HMMA"),
        ({"ratio": 2.0}, r"multiplies 2 times the tile's FLOP, not 1"),
    ],
)
def test_objections(changes: dict[str, object], found: str | None) -> None:
    analysis = made_up(GATE_UP, 16, configuration(), **changes)  # type: ignore[arg-type]
    assert objection(A100, GATE_UP, analysis) == found


def test_each_target_wants_its_own_matrix_instructions() -> None:
    analysis = made_up(GATE_UP, 16, configuration())
    assert objection(H100, GATE_UP, analysis) == "multiplies by HMMA, not by HGMMA"
    assert objection(B200, GATE_UP, analysis) == "multiplies by HMMA, not by tensor memory"
    does_not_fit = dataclasses.replace(analysis, resources=None, code=None)
    assert "more shared memory" in str(objection(A100, GATE_UP, does_not_fit))


def test_float32_is_three_products_but_on_amd() -> None:
    product = products(QWEN3, "float32")[0]
    three = made_up(product, 16, configuration(), ratio=3.0)
    assert objection(A100, product, three) is None
    assert "not 3" in str(objection(A100, product, made_up(product, 16, configuration())))
    amd = TARGETS["gfx942"]
    assert objection(amd, product, made_up(product, 16, configuration(), kind="MFMA")) is None


def analyses_of(
    *block_tokens: int, of: tuple[ProductConfiguration, ...], **slow: int
) -> dict[tuple[ProductName, int], list[Analysis]]:
    return {
        (name, tokens): [made_up(product, tokens, one, **slow) for one in of]  # type: ignore[arg-type]
        for name, product in zip(PRODUCTS, (GATE_UP, DOWN), strict=True)
        for tokens in block_tokens
    }


def test_the_fastest_predicted_is_chosen() -> None:
    decode, prefill = cases([QWEN3], 16), cases([QWEN3], 1024)
    slow, fast = configuration(stages=2), configuration(stages=4)
    analyses = analyses_of(16, 128, of=(slow, fast))
    # Tiles of 128 tokens, nearly empty, are multiplied in full.
    chosen = best(A100, "bfloat16", analyses, decode)
    assert chosen.configuration.block_tokens == 16
    assert chosen.configuration.gate_up == chosen.configuration.down == fast
    # Tiles of 16 read every weight many times.
    assert best(A100, "bfloat16", analyses, prefill).configuration.block_tokens == 128
    # Of 128, instructions take longer than multiplying.
    heavy = analyses_of(128, of=(fast,), instructions=5000)
    chosen = best(A100, "bfloat16", {**analyses, **heavy}, prefill)
    assert chosen.configuration.block_tokens == 16
    assert chosen.seconds < best(A100, "bfloat16", heavy, prefill).seconds


def test_both_products_are_needed() -> None:
    analyses = analyses_of(16, of=(configuration(),))
    analyses[("down", 16)] = []
    with pytest.raises(ValueError, match=r"no configuration of bfloat16 experts .* on sm_80"):
        best(A100, "bfloat16", analyses, cases([QWEN3], 16))


def test_rows() -> None:
    """One for any shape in every bucket; a shape's own only where that is clearly faster."""
    one = analyses_of(16, 64, of=(configuration(),))
    table = rows(A100, "bfloat16", one, [MIXTRAL, QWEN3], [MIXTRAL, QWEN3])
    general = [row for row in table if row.experts is None]
    assert [row.tokens_per_expert for row in general] == list(BUCKETS)
    assert {(row.device, row.weights, row.source) for row in table} == {
        ("sm_80", "bfloat16", "static")
    }
    for row in table:
        if row.experts is not None:
            layer = next(layer for layer in (MIXTRAL, QWEN3) if layer.experts == row.experts)
            assert (row.intermediate, row.hidden) == (layer.intermediate, layer.hidden)
            same = next(r for r in general if r.tokens_per_expert == row.tokens_per_expert)
            assert same.configuration != row.configuration
    # Alone, a layer's own choice is the one for any shape.
    alone = rows(A100, "bfloat16", one, [QWEN3], [QWEN3])
    assert all(row.experts is None for row in alone)


def test_prediction_is_no_less_than_the_bounds() -> None:
    for target in TARGETS.values():
        for tokens in (1, 64, 4096):
            for product in (GATE_UP, DOWN):
                of = configuration()
                bound = bounds(QWEN3, tokens, product, of, 16, target)
                analysis = made_up(product, 16, of)
                assert analysis.resources is not None
                assert analysis.code is not None
                taken, code = analysis.resources, analysis.code
                found = predict(bound, product, of, 16, target, taken, code)
                assert found.seconds >= bound.seconds
                assert found.memory_seconds >= bound.memory_seconds
                assert found.loop_seconds >= 0.999 * bound.matrix_seconds
                # Half the CTAs at once have half the bytes in flight.
                fewer = dataclasses.replace(
                    taken, occupancy=dataclasses.replace(taken.occupancy, ctas=1)
                )
                slower = predict(bound, product, of, 16, target, fewer, code)
                assert slower.memory_seconds >= found.memory_seconds
                assert slower.waves >= found.waves
    none = dataclasses.replace(taken, occupancy=Occupancy(ctas=0, share=0, limiter="registers"))
    with pytest.raises(ValueError, match=r"fit no CTA, for want of registers"):
        predict(bound, product, of, 16, target, none, code)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_candidates(target: Target) -> None:
    for weights in ("bfloat16", "float32", "int4"):
        for product in products(QWEN3, weights):
            for block_tokens in (16, 128):
                found = list(candidates(target, product, block_tokens))
                assert len(found) == len(set(found))
                assert found
                one = found[0]
                assert estimated_seconds(target, QWEN3, 64, product, one, block_tokens) > 0


def test_other_forms() -> None:
    for weights in ("bfloat16", "int4"):
        forms = {name: other_forms(weights, name) for name in PRODUCTS}
        assert PLAIN not in forms["gate_up"] + forms["down"]
        assert all(form.activation == "silu" for form in forms["down"])
        assert len(set(forms["down"])) == len(forms["down"]) < len(forms["gate_up"])
        assert any(form.transposed for form in forms["down"]) == (weights == "bfloat16")
        assert any(form.grouped_scales for form in forms["down"]) == (weights == "int4")


@pytest.mark.parametrize(
    ("target", "mma"),
    [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("sm_100", "tensor memory"), ("gfx942", "MFMA")],
)
def test_compiled_kernels_are_understood(target: str, mma: str) -> None:
    """The loop holds exactly the tile's FLOP, whatever is pipelined out of it."""
    of = configuration(stages=2)
    analysis = analyse(TARGETS[target], GATE_UP, 16, of)
    assert objection(TARGETS[target], GATE_UP, analysis) is None
    assert analysis.resources is not None
    assert analysis.code is not None
    assert analysis.code.matrix.kind == mma
    assert analysis.mma_flops_ratio == 1
    assert analysis.code.spill_bytes == analysis.resources.stack_bytes == 0
    assert bool(analysis.code.asynchronous_copies) == target.startswith("sm_")


def test_spills_are_those_that_the_assembler_reports(tmp_path: Path) -> None:
    of = configuration(outputs=256, warps=4, stages=2)
    kernel = compiled_product(A100, "bfloat16", "gate_up", 64, of)
    source = tmp_path / "kernel.ptx"
    source.write_text(kernel.asm["ptx"])
    # As Triton calls it.
    options = ["-v", "-lineinfo", "--regAllocOptLevel=2", "--gpu-name=sm_80"]
    command = [knobs.nvidia.ptxas.path, *options, str(source), "-o", str(tmp_path / "cubin")]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))
    analysis = analyse(A100, GATE_UP, 64, of)
    assert analysis.resources is not None
    assert analysis.code is not None
    assert analysis.code.spill_bytes == spilled > 0
    assert analysis.resources.stack_bytes > 0
    assert f"Used {analysis.resources.registers} registers" in log
    assert "spills registers" in str(objection(A100, GATE_UP, analysis))
    assert analyse(A100, GATE_UP, 64, of, in_full=False).code is None


def test_what_does_not_fit_is_said_to() -> None:
    of = configuration(outputs=128, inputs=128, stages=5)
    assert compiled_product(TARGETS["sm_86"], "bfloat16", "gate_up", 16, of) is None
    analysis = analyse(TARGETS["sm_86"], GATE_UP, 16, of)
    assert (analysis.resources, analysis.code) == (None, None)


def test_forms_are_compiled_apart() -> None:
    of = configuration(stages=2)
    plain = compiled_product(A100, "bfloat16", "gate_up", 16, of)
    uneven = compiled_product(A100, "bfloat16", "gate_up", 16, of, Form(even=False))
    assert plain.asm["ptx"] != uneven.asm["ptx"]


def test_kernels_around_the_products() -> None:
    kernels = {kernel.name: kernel for kernel in compiled_routing_kernels(A100)}
    assert set(kernels) == {"count_choices", "place_choices", "combine_choices"}
    for kernel in kernels.values():
        assert resources(kernel, A100).occupancy.ctas > 0
        assert machine_code(kernel, A100).matrix.kind == "none"
