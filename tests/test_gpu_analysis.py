"""Reading machine code, occupancy and bounds; nothing here is measured."""

import random

import pytest

from coxcompile.gpu_analysis.bounds import bounds
from coxcompile.gpu_analysis.expected_routing import ExpertLayer, expected_routing
from coxcompile.gpu_analysis.listings import amdgcn, sass
from coxcompile.gpu_analysis.matrix_instructions import (
    Shape,
    is_matrix_instruction,
    matrix_work,
    tensor_memory_shape,
)
from coxcompile.gpu_analysis.occupancy import occupancy
from coxcompile.gpu_analysis.products import products
from coxcompile.gpu_analysis.shared_memory import (
    asynchronous_copies,
    shared_traffic_bytes,
    spill_bytes,
)
from coxcompile.gpu_analysis.targets import TARGETS, Target, target_named
from coxcompile.naming import UnknownNameError
from coxcompile.runtime.kernels.gpu.configurations import ProductConfiguration

SMALL = ExpertLayer(name="small", experts=8, top_k=3, hidden=256, intermediate=96)
QWEN3 = ExpertLayer(name="qwen3-30b-a3b", experts=128, top_k=8, hidden=2048, intermediate=768)


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared_bytes", "ctas", "share", "limiter"),
    [
        # From NVIDIA's occupancy calculator.
        ("sm_80", 8, 32, 0, 8, 1.0, "warps"),
        ("sm_80", 1, 32, 0, 32, 0.5, "CTAs"),
        ("sm_80", 4, 128, 0, 4, 0.25, "registers"),
        ("sm_80", 4, 129, 0, 3, 0.1875, "registers"),
        ("sm_80", 8, 255, 0, 1, 0.125, "registers"),
        ("sm_80", 4, 32, 48 * 1024, 3, 0.1875, "shared memory"),
        ("sm_80", 4, 32, 163 * 1024, 1, 0.0625, "shared memory"),
        ("sm_80", 4, 32, 163 * 1024 + 1, 0, 0.0, "shared memory"),
        ("sm_86", 4, 40, 0, 12, 1.0, "warps"),
        ("sm_86", 1, 32, 0, 16, 1 / 3, "CTAs"),
        ("sm_89", 1, 32, 0, 24, 0.5, "CTAs"),
        ("sm_89", 4, 32, 49 * 1024, 2, 1 / 6, "shared memory"),
        ("sm_90", 4, 168, 0, 3, 0.1875, "registers"),
        ("sm_90", 4, 32, 227 * 1024, 1, 0.0625, "shared memory"),
        # LLVM's AMDGPU backend: waves per SIMD of so many vector registers.
        ("gfx942", 4, 64, 0, 8, 1.0, "warps"),
        ("gfx942", 4, 65, 0, 7, 0.875, "registers"),
        ("gfx942", 4, 246, 0, 2, 0.25, "registers"),
        ("gfx942", 8, 512, 0, 0, 0.0, "registers"),
        ("gfx942", 4, 64, 32 * 1024, 2, 0.25, "shared memory"),
    ],
)
def test_occupancy(
    target: str,
    warps: int,
    registers: int,
    shared_bytes: int,
    ctas: int,
    share: float,
    limiter: str,
) -> None:
    found = occupancy(
        target_named(target), warps=warps, registers=registers, shared_bytes=shared_bytes
    )
    assert (found.ctas, found.limiter) == (ctas, limiter)
    assert found.share == pytest.approx(share)


@pytest.mark.parametrize(("columns", "ctas"), [(0, 16), (32, 16), (40, 8), (256, 2), (512, 1)])
def test_tensor_memory_comes_in_powers_of_two(columns: int, ctas: int) -> None:
    found = occupancy(
        target_named("sm_100"), warps=4, registers=32, shared_bytes=0, tensor_memory_columns=columns
    )
    assert found.ctas == ctas


def test_an_unknown_target_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no target 'sm_8'.*did you mean sm_8"):
        target_named("sm_8")


# The second loop lies in the first. Its end, a block that waits and one of instructions, has been
# moved behind EXIT.
SASS = """
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDS.U.128 R4, [R2] ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0030*/                   LDSM.16.M88.4 R8, [R20] ;
        /*0040*/              @!P0 BRA `(.L_x_3) ;
.L_x_2:
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/                   STL.64 [R1], R4 ;
        /*0070*/               @P2 BRA `(.L_x_0) ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*00a0*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*00b0*/                   BRA `(.L_x_4) ;
"""


def test_a_loop_in_a_loop_with_a_block_moved_away() -> None:
    listing = sass(SASS)
    assert len(listing.instructions) == 12
    loop = listing.innermost_loop(is_matrix_instruction)
    assert [line.split()[0] for line in loop] == [
        *("HMMA.16816.F32.BF16", "LDSM.16.M88.4", "@!P0", "@P1", "HMMA.16816.F32.BF16", "BRA"),
    ]
    outer = listing.innermost_loop(lambda line: line.startswith("LDS."))
    assert len(outer) == 9
    assert outer[0].startswith("LDS.U.128")
    assert listing.innermost_loop(lambda line: "nothing" in line) == listing.instructions


def test_a_loop_whose_jump_back_goes_to_its_middle() -> None:
    """As LLVM lays loops out: entered at .LBB0_2, which the code before it falls through to."""
    listing = amdgcn(
        "\n".join(
            [
                "\ts_mov_b32 s0, 0",
                "\ts_branch .LBB0_2",
                ".LBB0_1:                                ;   in Loop: Header=BB0_2 Depth=1",
                "\tv_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]",
                "\ts_cbranch_scc0 .LBB0_3",
                ".LBB0_2:",
                "\tds_read_b128 v[20:23], v1",
                "\ts_branch .LBB0_1",
                ".LBB0_3:",
                "\ts_endpgm",
            ]
        )
    )
    loop = listing.innermost_loop(is_matrix_instruction)
    assert [line.split()[0] for line in loop] == [
        *("v_mfma_f32_32x32x8_bf16", "s_cbranch_scc0", "ds_read_b128", "s_branch"),
    ]


@pytest.mark.parametrize(
    ("line", "warps", "kind", "flops", "shared_bytes"),
    [
        ("HMMA.16816.F32.BF16 R4, R8.reuse, R12, R4", 4, "HMMA", 4 * 4096, 0),
        ("HMMA.1688.F32.TF32 R4, R8, R12, R4", 8, "HMMA", 8 * 2048, 0),
        ("QMMA.16832.F32.E4M3.E4M3 R4, R8, R12, R4", 4, "HMMA", 4 * 8192, 0),
        ("HGMMA.64x16x16.F32.BF16 R32, gdesc[UR40], R32, gsb0", 4, "HGMMA", 32768, 80 * 32),
        ("HGMMA.64x128x16.F32.BF16 R88, gdesc[UR8], R88", 8, "HGMMA", 2 * 262144, 2 * 192 * 32),
        ("HGMMA.64x16x16.F32.BF16 R24, R4, gdesc[UR8], R24", 4, "HGMMA", 32768, 16 * 32),
        ("v_mfma_f32_32x32x8_bf16 v[48:63], v[1:2], v[3:4], v[48:63]", 4, "MFMA", 4 * 16384, 0),
        ("v_mfma_f32_16x16x16_bf16 a[0:3], v[1:2], v[3:4], a[0:3]", 4, "MFMA", 4 * 8192, 0),
        ("v_mfma_f32_16x16x4_f32 v[0:3], v1, v2, v[0:3]", 8, "MFMA", 8 * 2048, 0),
        ("v_mfma_f32_4x4x4_16b_f16 v[0:3], v1, v2, v[0:3]", 1, "MFMA", 16 * 128, 0),
        ("FFMA R4, R8, R12, R4", 4, "none", 0, 0),
    ],
)
def test_matrix_instructions(
    line: str, warps: int, kind: str, flops: int, shared_bytes: int
) -> None:
    work = matrix_work([line, "BAR.SYNC.DEFER_BLOCKING 0x0"], warps, None)
    assert (work.kind, work.flops, work.shared_bytes) == (kind, flops, shared_bytes)
    assert work.count == (kind != "none") == is_matrix_instruction(line)


PTX = """
    mov.b32     %r193, 135267472;
    @%p35 tcgen05.mma.cta_group::1.kind::f16 [ %r9 + 0 ], %rd115, %rd116, %r193, %p34;
    @%p35 tcgen05.mma.cta_group::1.kind::f16 [ %r9 + 0 ], [ %r8 + 0 ], %rd118, %r193, %p36;
"""
UTCHMMA = "@P0 UTCHMMA {}, gdesc[UR20], tmem[UR15], tmem[UR30], idesc[UR31], UPT"


def test_tensor_memory_instructions_take_their_shape_from_ptx() -> None:
    shape = tensor_memory_shape(PTX)
    assert shape == Shape(128, 64, 16)
    lines = [UTCHMMA.format("gdesc[UR4]"), UTCHMMA.format("tmem[UR4]")]
    work = matrix_work(lines, 8, shape)
    assert (work.kind, work.count, work.rate) == ("tensor memory", 2, 1.0)
    assert work.flops == 2 * 2 * 128 * 64 * 16
    assert work.shared_bytes == (128 + 64 + 64) * 32
    assert work.names == ("UTCHMMA 128x64x16",)
    assert matrix_work(lines, 8, Shape(64, 64, 16)).rate == 0.5
    assert tensor_memory_shape("mov.b32 %r193, 135267472;") is None
    with pytest.raises(ValueError, match=r"tensor_memory_shape is None.*pass its PTX"):
        matrix_work(lines, 8, None)
    with pytest.raises(ValueError, match="several shapes"):
        tensor_memory_shape(PTX + PTX.replace("%r193", "%r200").replace("135267472", "134480016"))


def test_shared_traffic() -> None:
    lines = ["LDSM.16.M88.4 R8, [R20]", "LDSM.16.MT88.2 R8, [R20]", "LDS.U.128 R4, [R2]"]
    assert shared_traffic_bytes(lines, 4, 32) == 4 * (512 + 256 + 512)
    lines = ["@P0 STS.64 [R2], R4", "STS.U8 [R2], R4", "LDGSTS.E.BYPASS.128 [R2], [R4.64]"]
    assert shared_traffic_bytes(lines, 8, 32) == 8 * (256 + 128 + 512)
    lines = [
        "ds_read_b128 v[0:3], v4",
        "ds_write2st64_b64 v0, v[1:2], v[3:4]",
        "ds_read_u16 v0, v1",
    ]
    assert shared_traffic_bytes(lines, 4, 64) == 4 * 64 * (16 + 16 + 4)
    assert shared_traffic_bytes(["LDG.E.128 R4, [R2]", "LDL R4, [R1]"], 4, 32) == 0


def test_spills_and_copies() -> None:
    assert spill_bytes(["STL [R1], R4", "LDL.64 R4, [R1+0x8]", "@P0 LDL.LU.128 R4, [R1]"]) == 28
    assert (
        spill_bytes(["scratch_store_dwordx4 off, v[0:3], s1", "scratch_load_dword v0, off"]) == 20
    )
    assert spill_bytes(["LDS R4, [R1]", "v_accvgpr_write_b32 a0, v1"]) == 0
    lines = ["LDGSTS.E.128 [R2], [R4]", "@UP0 UTMALDG.2D [UR4], [UR8]", "LDGSTS.E [R2], [R4]"]
    assert asynchronous_copies(lines) == {"LDGSTS": 2, "UTMALDG": 1}
    assert asynchronous_copies(["LDG.E R4, [R2]", "global_load_dwordx4 v[0:3], v4, s[0:1]"]) == {}
    assert asynchronous_copies(["global_load_lds_dwordx4 v0, s[0:1]"]) == {"global_load": 1}


def simulated(layer: ExpertLayer, tokens: int, block_tokens: int) -> tuple[float, float]:
    """Mean active experts and tiles of 4000 random routings."""
    generator, repeats = random.Random(5), 4000
    active = tiles = 0
    for _ in range(repeats):
        counts = [0] * layer.experts
        for _ in range(tokens):
            for expert in generator.sample(range(layer.experts), layer.top_k):
                counts[expert] += 1
        active += sum(count > 0 for count in counts)
        tiles += sum(-(-count // block_tokens) for count in counts)
    return active / repeats, tiles / repeats


@pytest.mark.parametrize(("tokens", "block_tokens"), [(1, 16), (3, 2), (20, 4), (33, 16)])
def test_expected_routing_against_simulation(tokens: int, block_tokens: int) -> None:
    expected = expected_routing(SMALL, tokens, block_tokens)
    active, tiles = simulated(SMALL, tokens, block_tokens)
    assert expected.choices == 3 * tokens
    assert expected.active_experts == pytest.approx(active, rel=0.01)
    assert expected.tiles == pytest.approx(tiles, rel=0.01)
    assert expected.fill == pytest.approx(3 * tokens / (tiles * block_tokens), rel=0.01)


def test_expected_routing_in_closed_form() -> None:
    expected = expected_routing(QWEN3, 64, 16)
    assert expected.active_experts == pytest.approx(128 * (1 - (1 - 8 / 128) ** 64))
    assert expected_routing(QWEN3, 4096, 1).tiles == pytest.approx(4096 * 8)
    for wrong in ((0, 16), (4, 0)):
        with pytest.raises(ValueError, match="is 0; it has to be at least 1"):
            expected_routing(QWEN3, *wrong)


CONFIGURATION = ProductConfiguration(block_outputs=64, block_inputs=64, warps=4, stages=3)


def test_bounds_count_each_number_once() -> None:
    """Gate and up, then down, of 20 tokens; every number by hand."""
    target = target_named("sm_80")
    routing = expected_routing(SMALL, 20, 16)
    gate_up, down = (
        bounds(SMALL, 20, product, CONFIGURATION, 16, target)
        for product in products(SMALL, "bfloat16")
    )
    weights = routing.active_experts * 96 * 256
    assert gate_up.memory_bytes == 2 * (2 * weights + 20 * 256 + 60 * 96)
    assert down.memory_bytes == 2 * (weights + 60 * 96 + 60 * 256)
    assert gate_up.flops == 2 * 60 * 2 * 96 * 256
    assert down.flops == 2 * 60 * 96 * 256
    # 96 outputs are two blocks of 64 and as inputs two steps; 256 are four of either.
    assert gate_up.ctas == routing.tiles * 2
    assert down.ctas == routing.tiles * 4
    assert gate_up.useful_share == pytest.approx(routing.fill * 96 / 128)
    assert down.useful_share == pytest.approx(routing.fill * 96 / 128)
    assert gate_up.l2_bytes == 2 * (routing.tiles * 2 * 256 * (16 + 2 * 64) + 60 * 96)
    assert gate_up.memory_seconds == gate_up.memory_bytes / 2039e9
    assert gate_up.matrix_seconds == pytest.approx(gate_up.flops / gate_up.useful_share / 312e12)
    assert gate_up.seconds == max(
        gate_up.memory_seconds, gate_up.matrix_seconds, gate_up.l2_seconds
    )


@pytest.mark.parametrize(
    ("weights", "bytes_per_weight", "peak"),
    [("float16", 2, 312e12), ("float32", 4, 52e12), ("int8", 1, 312e12), ("int4", 0.5, 312e12)],
)
def test_bounds_of_other_weights(weights: str, bytes_per_weight: float, peak: float) -> None:
    product = products(SMALL, weights)[1]
    assert product.weight_bytes == 96 * 256 * bytes_per_weight
    found = bounds(SMALL, 20, product, CONFIGURATION, 16, target_named("sm_80"))
    assert found.ridge == pytest.approx(peak / 2039e9)
    assert found.matrix_seconds == pytest.approx(found.flops / found.useful_share / peak)
    with pytest.raises(ValueError, match="weights is 'int3'; use one of bfloat16"):
        products(SMALL, "int3")


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_memory_bound_or_compute_bound_goes_with_the_ridge(target: Target) -> None:
    for tokens in (1, 64, 4096, 65536):
        for product in products(QWEN3, "bfloat16"):
            found = bounds(QWEN3, tokens, product, CONFIGURATION, 64, target)
            issued_intensity = found.intensity / found.useful_share
            assert found.bound == ("memory" if issued_intensity < found.ridge else "compute")
