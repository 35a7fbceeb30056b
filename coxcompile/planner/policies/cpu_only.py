"""Policy cpu-only: every operation on the CPU, the experts coalesced over the largest block."""

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.expert_costs import Floats
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import ExpertSplit, Plan, StagePlan
from coxcompile.planner.policies.search import micro_batches
from coxcompile.planner.policies.setting import STAGES, Setting
from coxcompile.planner.workload import Workload


def cpu_only(
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> Plan:
    """Everything on the CPU: no link, no VRAM, and each weight is read once a block.

    The block is the whole batch, or the largest that host memory holds with its cache; each
    stage's micro-batch is then the one that the shared cost model predicts to be fastest.

    Raises:
        DoesNotFitError: host memory does not hold the weights and one sequence's cache.
    """
    setting = Setting("cpu-only", model, hardware, workload, probabilities)
    block = _largest_block(setting)
    plans = [_plan(model, size, block) for size in reversed(micro_batches(block))]
    pair = setting.fastest_pair([(plans, plans)])
    assert pair is not None, "micro-batches of 1 fit, for they did when the block was found"
    prefill, decode = pair
    cached = setting.memory(decode, "decode").host["KV cache"]
    return setting.answer(
        pair,
        [
            f"All operations on the CPU, as the policy demands: {model.total_bytes / 1e9:.1f} GB "
            "of weights are used where they lie and nothing crosses a link.",
            f"{'The whole batch' if block == workload.batch else f'Blocks of {block}'} of "
            f"{workload.batch} sequences at once, with {cached / 1e9:.1f} GB of KV cache: the most "
            f"that {hardware.cpu.memory_bytes / 1e9:.1f} GB of host memory hold.",
            f"Micro-batches of {prefill.micro_batch} sequences in prefill and of "
            f"{decode.micro_batch} in decode: the fastest of those that fit, as predicted.",
        ],
    )


def _plan(model: ModelSpec, micro_batch: int, block: int) -> StagePlan:
    return StagePlan(
        qkv="cpu",
        attention="cpu",
        output="cpu",
        micro_batch=micro_batch,
        block=block,
        coalesced=True,
        experts=(ExpertSplit(resident=0, migrating=0, cpu=model.experts),) * model.moe_layers,
    )


def _largest_block(setting: Setting) -> int:
    """By bisection: host memory grows with the block."""
    fitting, too_large = 0, setting.workload.batch + 1
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        plan = _plan(setting.model, 1, middle)
        if all(setting.fits(plan, stage) for stage in STAGES):
            fitting = middle
        else:
            too_large = middle
    if fitting == 0:
        smallest = _plan(setting.model, 1, 1)
        raise setting.does_not_fit([(smallest, smallest)])
    return fitting
