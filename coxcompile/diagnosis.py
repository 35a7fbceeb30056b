"""What ``coxmoe doctor`` finds: what is installed, and which kernels run here."""

import importlib.util
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from coxcompile.hardware import ExpertThresholds
from coxcompile.machine import Machine, this_machine
from coxcompile.onednn import OneDnn, OneDnnError, this_onednn
from coxcompile.processor import ProcessorFacts, this_processor

Provider = Literal["native", "plain"]

VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY"),
    *("KMP_AFFINITY", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"),
    "THP_MEM_ALLOC_ENABLE",
)
"""Of the environment, what chooses threads, their places, instruction sets and sizes of pages."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The CPU's expert kernels.

    ``provider`` is "native" (C++) or "plain" (PyTorch calls). Of the native ones, by dtype:
    ``instruction_sets`` of the products of few tokens, and ``panel_tokens``, from how many tokens
    on an expert's weights, stored transposed, are multiplied as panels by oneDNN (0: never).
    ``thresholds`` are those in force for bfloat16, and ``thresholds_source`` says where from; None
    and "" of the plain ones.
    """

    provider: Provider
    instruction_sets: dict[str, str]
    panel_tokens: dict[str, int]
    thresholds: ExpertThresholds | None = None
    thresholds_source: str = ""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """This installation on this machine.

    ``compiler`` is None, and ``compiler_obstacle`` says why and what to do, where Inductor can
    compile nothing for the CPU. ``onednn`` is None, and ``onednn_error`` says why, where it does
    not say what it uses. ``variables`` are those of VARIABLES that are set.
    """

    python: str
    torch: str
    triton: str | None
    compiler: str | None
    compiler_obstacle: str | None
    machine: Machine
    nvidia_driver: bool
    processor: ProcessorFacts
    kernels: Kernels
    capability: str
    onednn: OneDnn | None
    onednn_error: str | None
    threads: int
    variables: dict[str, str]


def diagnose() -> Diagnosis:
    """Look; takes some seconds, in which torch is imported here and in a process of its own.

    Calibrated thresholds of the CPU's kernel are put in force, as compiling does.

    Raises:
        RecordError: the calibration file is damaged.
        DetectionError: /proc is not what Linux has there.
    """
    machine = this_machine()
    import torch

    from coxcompile.runtime.kernels import inductor_obstacle

    obstacle = inductor_obstacle()
    onednn, onednn_error = None, None
    try:
        onednn = this_onednn()
    except OneDnnError as error:
        onednn_error = str(error)
    return Diagnosis(
        python=platform.python_version(),
        torch=str(torch.__version__),
        triton=_version("triton"),
        compiler=None if obstacle else _compiler(),
        compiler_obstacle=f"{obstacle.reason}. {obstacle.remedy}" if obstacle else None,
        machine=machine,
        nvidia_driver=os.path.exists("/proc/driver/nvidia/version"),
        processor=this_processor(),
        kernels=_kernels(),
        capability=torch.backends.cpu.get_cpu_capability(),
        onednn=onednn,
        onednn_error=onednn_error,
        threads=torch.get_num_threads(),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def _kernels() -> Kernels:
    if importlib.util.find_spec("coxcompile._native") is None:
        return Kernels(provider="plain", instruction_sets={}, panel_tokens={})
    import torch

    from coxcompile.expert_thresholds import apply_calibrated_thresholds, thresholds_in_force

    source = apply_calibrated_thresholds()
    return Kernels(
        provider="native",
        instruction_sets=torch.ops.coxmoe.cpu_instruction_sets(),
        panel_tokens=torch.ops.coxmoe.cpu_panel_tokens(),
        thresholds=thresholds_in_force(),
        thresholds_source=source,
    )


def _compiler() -> str:
    """The first line of what Inductor's C++ compiler calls itself."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    command = [get_cpp_compiler(), "--version"]
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
