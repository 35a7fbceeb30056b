"""What in a diagnosis is slow to leave as it is, and what to do about it."""

from collections.abc import Callable, Iterator

from coxcompile.diagnosis import Diagnosis

_PLACES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def hints(diagnosis: Diagnosis) -> list[str]:
    """One sentence or two each, the costliest first; empty where there is nothing to gain."""
    return [hint for rule in _RULES for hint in rule(diagnosis)]


def _kernels(found: Diagnosis) -> Iterator[str]:
    if found.kernels.provider == "plain":
        yield (
            "The C++ kernels are not built, so experts run on plain PyTorch calls: install g++ and "
            "reinstall coxcompile."
        )
    if found.compiler_obstacle is not None:
        yield f"Inductor compiles nothing for the CPU: {found.compiler_obstacle}."


def _limits(found: Diagnosis) -> Iterator[str]:
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        if name in found.variables:
            yield (
                f"{name} is {found.variables[name]}, which keeps kernels to that instruction set: "
                "unset it, unless that is what you test."
            )


def _amx(found: Diagnosis) -> Iterator[str]:
    if not found.processor.has_amx:
        return
    if not found.processor.amx_permitted:
        yield (
            "The processor has AMX, but Linux does not let this process use it: it takes Linux "
            "5.16 or later, and a hypervisor or container that passes it on."
        )
    elif found.onednn is not None and not found.onednn.has_amx:
        yield (
            f"The processor has AMX, but oneDNN dispatches to {found.onednn.instruction_set}: "
            "unset ONEDNN_MAX_CPU_ISA, and check that torch is the official build."
        )


def _bfloat16(found: Diagnosis) -> Iterator[str]:
    sets = found.processor.instruction_sets
    if found.kernels.provider == "native" and not {"avx512_bf16", "amx_bf16"} & set(sets):
        yield (
            "The processor multiplies no bfloat16: many tokens are no faster than in float32. Few "
            "are, since half the bytes are read."
        )


def _onednn(found: Diagnosis) -> Iterator[str]:
    if found.onednn_error is not None:
        yield (
            "oneDNN, which multiplies where an expert has many tokens, cannot be asked: "
            f"{found.onednn_error}."
        )


def _threads(found: Diagnosis) -> Iterator[str]:
    processor, threads = found.processor, found.threads
    quota = processor.quota_cpus
    if quota is not None and threads > quota:
        yield (
            f"{threads} threads share the {quota:g} CPUs that this container's limit leaves: set "
            f"OMP_NUM_THREADS={max(1, int(quota))}."
        )
    elif threads > processor.usable_cpus:
        yield (
            f"{threads} threads share {processor.usable_cpus} CPUs: set "
            f"OMP_NUM_THREADS={processor.usable_cores}."
        )
    elif threads > processor.usable_cores:
        yield (
            f"{threads} threads run on {processor.usable_cores} cores: one a core is usually "
            f"faster, OMP_NUM_THREADS={processor.usable_cores}."
        )
    elif threads < processor.usable_cores and (quota is None or threads < int(quota)):
        yield (
            f"Only {threads} of {processor.usable_cores} cores are used: unset OMP_NUM_THREADS, or "
            f"set it to {processor.usable_cores}."
        )


def _places(found: Diagnosis) -> Iterator[str]:
    nodes = found.processor.numa_nodes
    if nodes > 1 and not any(name in found.variables for name in _PLACES):
        yield (
            f"Threads are free to move between {nodes} NUMA nodes, away from the weights they "
            "read: set OMP_PROC_BIND=spread OMP_PLACES=cores and compile with the option "
            "spread_experts, or keep to one node with numactl."
        )


def _pages(found: Diagnosis) -> Iterator[str]:
    on_request = found.processor.large_pages == "madvise"
    if on_request and found.variables.get("THP_MEM_ALLOC_ENABLE") != "1":
        yield (
            "Weights get small pages, since Linux gives large ones on request and PyTorch does not "
            "ask: set THP_MEM_ALLOC_ENABLE=1 before it starts."
        )


def _gpu(found: Diagnosis) -> Iterator[str]:
    if found.machine.gpu is None:
        if found.nvidia_driver:
            yield (
                f"There is an NVIDIA driver, but torch {found.torch} finds no GPU: install a build "
                "of torch for CUDA."
            )
    elif found.triton is None:
        yield "The GPU's expert kernels take Triton, which is not installed: pip install triton."


_RULES: tuple[Callable[[Diagnosis], Iterator[str]], ...] = (
    _kernels,
    _limits,
    _onednn,
    _amx,
    _threads,
    _places,
    _pages,
    _gpu,
    _bfloat16,
)
