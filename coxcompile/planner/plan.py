"""The plan: where everything runs in each stage, and why. All policies produce this one type."""

from dataclasses import dataclass
from typing import Literal

Device = Literal["gpu", "cpu"]
Stage = Literal["prefill", "decode"]


@dataclass(frozen=True, kw_only=True)
class ExpertSplit:
    """Where one layer's experts run: N_R + N_M + N_C = E (paper §4.1).

    Experts are ordered by how many tokens they are expected to get: the hottest are resident, the
    coldest are the CPU's.

    Attributes:
        resident: copied to VRAM once, before the stage.
        migrating: fetched over the link each time they are needed, into the staging slots.
        cpu: computed where their weights lie.
    """

    resident: int
    migrating: int
    cpu: int

    def __post_init__(self) -> None:
        if min(self.resident, self.migrating, self.cpu) < 0:
            raise ValueError(f"{self} has a negative number of experts")

    @property
    def experts(self) -> int:
        """All of them (E)."""
        return self.resident + self.migrating + self.cpu


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """How one stage (prefill, or a decoding step) runs, layer after layer.

    Attributes:
        qkv: where OP0, the QKV projection, runs (α0).
        attention: where OP1 runs (α1). The KV cache of ``kv_gpu_share`` of the sequences lies in
            VRAM, the rest in host memory: attention on the CPU reads it in place, attention on the
            GPU has it fetched.
        output: where OP2, the output projection, runs (α2); shared experts and dense FFNs with it.
        micro_batch: sequences a time through OP0-OP2 (μ).
        block: sequences that pass through all layers together; the workload's batch is run in
            ⌈B / block⌉ such passes. Weights that are not resident are fetched once a block.
        coalesced: the experts run once over the whole block (paper §4.1); otherwise once a
            micro-batch, reading their weights each time.
        experts: for each MoE layer.
        staging_experts: slots in VRAM for migrating experts; they are filled ahead of need.
        fetches_overlap: a layer's weights cross the link while the layer before is computed. False
            (only where not coalesced): the layer begins with its fetch and waits for it.
        resident_share: share of the weights that are no routed experts, on the GPU's operations,
            that stay in VRAM; the rest is fetched for each layer.
        kv_gpu_share: share of the KV cache in VRAM, in [0, 1].
        disk_share: share of the weights that neither memory holds and the disk does.
        expert_rows: tokens of an expert a time on the GPU, which bounds its intermediates; None:
            all of them.
        attention_parts: attention takes a micro-batch in so many parts, which divides its
            intermediates: OP1's own μ is micro_batch / attention_parts.
        cpu_rows_share: share of each migrating expert's weight rows (its intermediate dimension)
            that the CPU computes where they lie; only the rest crosses the link.
    """

    qkv: Device
    attention: Device
    output: Device
    micro_batch: int
    block: int
    coalesced: bool
    experts: tuple[ExpertSplit, ...]
    staging_experts: int = 0
    fetches_overlap: bool = True
    resident_share: float = 1.0
    kv_gpu_share: float = 0.0
    disk_share: float = 0.0
    expert_rows: int | None = None
    attention_parts: int = 1
    cpu_rows_share: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.micro_batch <= self.block:
            raise ValueError(
                f"micro_batch is {self.micro_batch}, but must lie in [1, block = {self.block}]"
            )
        if self.attention == "cpu" and self.kv_gpu_share:
            raise ValueError(
                f"kv_gpu_share is {self.kv_gpu_share}, but must be 0 with attention on the CPU, "
                "which reads the cache in host memory"
            )
        if self.coalesced and not self.fetches_overlap:
            raise ValueError("fetches_overlap is False, but must be True in a coalesced plan")
        if self.attention_parts < 1:
            raise ValueError(f"attention_parts is {self.attention_parts}, but must be 1 or more")
        for name in ("resident_share", "kv_gpu_share", "disk_share", "cpu_rows_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must lie in [0, 1]")

    @property
    def devices(self) -> tuple[Device, Device, Device]:
        """(α0, α1, α2)."""
        return self.qkv, self.attention, self.output


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A policy's answer for one model, machine and workload.

    Attributes:
        policy: the name of the policy that made it.
        model, hardware: names of what it was made for.
        prefill, decode: one plan a stage; decoding is planned at the cache's mean length.
        reasons: for each decision a sentence.
    """

    policy: str
    model: str
    hardware: str
    prefill: StagePlan
    decode: StagePlan
    reasons: tuple[str, ...] = ()

    def stage(self, name: Stage) -> StagePlan:
        """The plan of one stage."""
        return self.prefill if name == "prefill" else self.decode
