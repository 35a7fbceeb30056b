"""``coxmoe doctor``: what it prints, when it has hints, and where it looks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coxcompile import onednn, processor
from coxcompile.cli import main
from coxcompile.diagnosis import Diagnosis, Kernels, diagnose
from coxcompile.hints import hints
from coxcompile.machine import Machine
from coxcompile.onednn import OneDnn, OneDnnError, read_log, this_onednn
from coxcompile.processor import ProcessorFacts, quota_cpus, this_processor

AMX = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
WELL = Diagnosis(
    python="3.11.7",
    torch="2.13.0+cu130",
    triton="3.7.1",
    compiler="g++ 12.2.0",
    compiler_obstacle=None,
    machine=Machine(cpu="Xeon", memory_bytes=2**38, gpu="RTX", gpu_memory_bytes=2**35),
    nvidia_driver=True,
    processor=ProcessorFacts(
        instruction_sets=AMX,
        amx_permitted=True,
        usable_cpus=64,
        usable_cores=32,
        quota_cpus=None,
        numa_nodes=1,
        large_pages="always",
    ),
    kernels=Kernels(
        provider="native",
        instruction_sets={"bfloat16": "avx512_bf16"},
        panel_tokens={"bfloat16": 16},
    ),
    capability="AVX512",
    onednn=OneDnn(instruction_set="AMX", implementation="brg_matmul:avx10_1_512_amx"),
    onednn_error=None,
    threads=32,
    variables={},
)
PLAIN = Kernels(provider="plain", instruction_sets={}, panel_tokens={})
NO_GPU = Machine(cpu="Xeon", memory_bytes=2**38)


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(("doctor", *arguments))
    assert not stopped.value.code


def test_text_and_json_say_what_runs_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = diagnose()
    monkeypatch.setattr("coxcompile.diagnosis.diagnose", lambda: found)
    monkeypatch.setenv("COLUMNS", "120")
    run()
    printed = capsys.readouterr().out
    run("--json")
    read = json.loads(capsys.readouterr().out)
    assert read["torch"] == torch.__version__
    assert read["threads"] == torch.get_num_threads()
    assert read["hints"] == hints(found)
    assert found.onednn is not None
    assert read["onednn"]["instruction_set"] == found.onednn.instruction_set
    for value in (torch.__version__, found.onednn.instruction_set, found.machine.cpu):
        assert value in printed
    if found.kernels.provider == "native":
        assert read["kernels"]["instruction_sets"] == torch.ops.coxmoe.cpu_instruction_sets()
        assert read["kernels"]["instruction_sets"]["bfloat16"] in printed
        thresholds = torch.ops.coxmoe.expert_thresholds()
        assert list(read["kernels"]["thresholds"].values())[:3] == thresholds
        assert found.kernels.thresholds_source
        assert found.kernels.thresholds_source[:20] in printed


def test_what_is_fast_gets_no_hint() -> None:
    assert hints(WELL) == []


def changed(**facts: object) -> Diagnosis:
    return replace(WELL, processor=replace(WELL.processor, **facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "fragment"),
    [
        (
            replace(WELL, kernels=Kernels(provider="plain", instruction_sets={}, panel_tokens={})),
            "C++ kernels are not built",
        ),
        (replace(WELL, compiler_obstacle="no Python.h. Install it"), "no Python.h. Install it"),
        (replace(WELL, variables={"ONEDNN_MAX_CPU_ISA": "AVX2"}), "ONEDNN_MAX_CPU_ISA is AVX2"),
        (replace(WELL, variables={"ATEN_CPU_CAPABILITY": "avx2"}), "ATEN_CPU_CAPABILITY is avx2"),
        (replace(WELL, onednn=None, onednn_error="no log"), "cannot be asked: no log"),
        (changed(amx_permitted=False), "Linux does not let this process use it"),
        (
            replace(WELL, onednn=OneDnn(instruction_set="Intel AVX2", implementation=None)),
            "oneDNN dispatches to Intel AVX2",
        ),
        (replace(WELL, threads=65), "65 threads share 64 CPUs: set OMP_NUM_THREADS=32"),
        (replace(WELL, threads=64), "64 threads run on 32 cores"),
        (replace(WELL, threads=4), "Only 4 of 32 cores are used"),
        (
            changed(quota_cpus=7.5),
            "7.5 CPUs that this container's limit leaves: set OMP_NUM_THREADS=7",
        ),
        (changed(numa_nodes=2), "between 2 NUMA nodes"),
        (changed(large_pages="madvise"), "set THP_MEM_ALLOC_ENABLE=1"),
        (replace(WELL, machine=NO_GPU), "torch 2.13.0+cu130 finds no GPU"),
        (replace(WELL, triton=None), "pip install triton"),
        (changed(instruction_sets=("avx2",)), "multiplies no bfloat16"),
    ],
)
def test_what_is_slow_gets_one_hint(found: Diagnosis, fragment: str) -> None:
    (hint,) = hints(found)
    assert fragment in hint


@pytest.mark.parametrize(
    "found",
    [
        replace(changed(numa_nodes=2), variables={"OMP_PROC_BIND": "close"}),
        replace(WELL, machine=NO_GPU, nvidia_driver=False, triton=None),
        replace(changed(quota_cpus=4.0), threads=4),
        changed(instruction_sets=AMX[:3], amx_permitted=False),
        replace(changed(large_pages="madvise"), variables={"THP_MEM_ALLOC_ENABLE": "1"}),
        changed(large_pages="never"),
    ],
    ids=["bound threads", "no GPU", "limit of threads", "no AMX", "requested pages", "no pages"],
)
def test_no_hint_where_nothing_can_be_gained(found: Diagnosis) -> None:
    assert hints(found) == []


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty /proc and /sys."""
    monkeypatch.setattr(processor, "PROC", tmp_path)
    monkeypatch.setattr(processor, "SYS", tmp_path)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_processor_is_read(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "request_tile_permission", lambda: True)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 5})
    write(
        system / "cpuinfo", "model name : Xeon\nflags\t\t: fpu avx2 avx512_bf16 amx_bf16 amx_tile\n"
    )
    for cpu, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 5: "1,5"}.items():
        topology = system / f"devices/system/cpu/cpu{cpu}/topology"
        write(topology / "thread_siblings_list", f"{siblings}\n")
    write(system / "kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    for node in ("node0", "node1", "has_cpu"):
        (system / "devices/system/node" / node).mkdir(parents=True)
    facts = this_processor()
    assert facts.instruction_sets == ("avx2", "avx512_bf16", "amx_tile", "amx_bf16")
    assert facts.has_amx
    assert facts.amx_permitted
    assert (facts.usable_cpus, facts.usable_cores, facts.numa_nodes) == (4, 3, 2)
    assert facts.large_pages == "madvise"


@pytest.mark.usefixtures("system")
def test_a_system_that_says_nothing_is_simple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert this_processor() == ProcessorFacts(
        instruction_sets=(),
        amx_permitted=False,
        usable_cpus=2,
        usable_cores=2,
        quota_cpus=None,
        numa_nodes=1,
        large_pages="never",
    )


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ],
)
def test_limit_of_a_container(system: Path, files: dict[str, str], cpus: float | None) -> None:
    for name, text in files.items():
        write(system / "fs/cgroup" / name, text)
    assert quota_cpus() == cpus


def test_onednn_is_asked_with_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    asked = this_onednn()
    assert asked == OneDnn(instruction_set="Intel AVX2", implementation=None)
    assert not asked.has_amx


def test_a_process_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_PROGRAM", "raise SystemExit('torch is broken')")
    with pytest.raises(OneDnnError, match="torch is broken"):
        this_onednn()


def test_a_log_without_an_instruction_set_is_an_error() -> None:
    with pytest.raises(OneDnnError, match="no use of oneDNN"):
        read_log("onednn_verbose,v1,info,cpu,runtime:OpenMP,nthr:2\n")
