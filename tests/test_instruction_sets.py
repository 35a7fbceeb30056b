"""The expert operators under every instruction set this processor can be limited to.

Each run is a process of its own: ATEN_CPU_CAPABILITY limits PyTorch's kernels and ours,
ONEDNN_MAX_CPU_ISA the panels' products, and both are read once.
"""

import os
from pathlib import Path

import pytest
import torch
from kernel_report import report

DTYPES = ("float32", "bfloat16", "float16")
CAPABILITY = torch.backends.cpu.get_cpu_capability()
AVX512 = CAPABILITY.startswith("AVX512")
BFLOAT16 = torch.cpu._is_avx512_bf16_supported()
INHERITED = {
    name: value
    for name, value in os.environ.items()
    if name not in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
}


@pytest.mark.skipif(not AVX512, reason="this processor has no AVX-512")
@pytest.mark.parametrize(
    ("limit", "named", "implementation"),
    [
        pytest.param(
            "avx512_core_bf16",
            "bfloat16 support",
            "brg_matmul:avx512_core_bf16",
            marks=pytest.mark.skipif(not BFLOAT16, reason="this processor has no AVX512-BF16"),
        ),
        ("avx512_core", "AVX512BW, AVX512VL, and AVX512DQ", "gemm:jit:bf16"),
        ("avx2", "AVX2", None),
    ],
)
def test_onednn_limited(limit: str, named: str, implementation: str | None, tmp_path: Path) -> None:
    environment = {**INHERITED, "ONEDNN_MAX_CPU_ISA": limit}
    used, onednn = report(tmp_path / "report.json", environment, *DTYPES)
    assert named in onednn.instruction_set
    assert onednn.implementation == implementation
    assert not onednn.has_amx
    # Ours go on using all there is.
    assert used.capability == CAPABILITY
    assert used.instruction_sets["bfloat16"] == ("avx512_bf16" if BFLOAT16 else "avx512")
    assert used.results
    assert used.wrong() == []


@pytest.mark.parametrize(
    ("limit", "bfloat16", "others"),
    [
        pytest.param(
            "avx512",
            "avx512_bf16" if BFLOAT16 else "avx512",
            "avx512",
            marks=pytest.mark.skipif(not AVX512, reason="this processor has no AVX-512"),
        ),
        pytest.param(
            "avx2",
            "avx2",
            "avx2",
            marks=pytest.mark.skipif(CAPABILITY == "DEFAULT", reason="no AVX2 here"),
        ),
        ("default", "portable", "portable"),
    ],
)
def test_pytorch_limited(limit: str, bfloat16: str, others: str, tmp_path: Path) -> None:
    environment = {**INHERITED, "ATEN_CPU_CAPABILITY": limit}
    used, _ = report(tmp_path / "report.json", environment, *DTYPES)
    assert used.capability == limit.upper()
    assert used.instruction_sets == {"float32": others, "bfloat16": bfloat16, "float16": others}
    # Panels are packed with AVX-512.
    assert limit == "avx512" or not any(used.panel_tokens.values())
    assert used.results
    assert used.wrong() == []
