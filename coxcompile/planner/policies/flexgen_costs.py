"""The constants of FlexGen's linear program: what its authors fit from runs, and bytes."""

from dataclasses import dataclass

from coxcompile.planner.plan import Device, Stage, StagePlan
from coxcompile.planner.policies.first_fit import memory_budgets
from coxcompile.planner.policies.flexgen_shares import BlockCosts
from coxcompile.planner.policies.setting import Setting
from coxcompile.planner.policies.splits import spread
from coxcompile.planner.stage_load import stage_load


@dataclass(frozen=True, kw_only=True)
class MicroBatchRun:
    """What one micro-batch takes in one layer, all of it where FlexGen runs it.

    Attributes:
        micro_batch: sequences (gbs).
        prefill_seconds, decode_seconds: on the GPU; decode without attention.
        attention_gpu_seconds, attention_cpu_seconds: attention of one decoding step.
        intermediate_bytes: in VRAM, in prefill.
    """

    micro_batch: int
    prefill_seconds: float
    decode_seconds: float
    attention_gpu_seconds: float
    attention_cpu_seconds: float
    intermediate_bytes: float


def run_of_micro_batch(setting: Setting, micro_batch: int) -> MicroBatchRun:
    """The shared cost model's answer, in place of the runs that FlexGen's constants are fitted to.

    FlexGen divides FLOP by fitted rates (mm, bmm, cpu(gbs)); its MoE port leaves out that a token
    visits k experts and that few tokens an expert do not reach the rate. Here the rates hold that.
    """

    def busy(stage: Stage, attention: Device, processor: Device) -> float:
        plan = _alone(setting, micro_batch, attention)
        load = stage_load(setting.workload, stage, plan)
        steps = max(load.steps, 1) * load.blocks
        seconds = setting.predict(plan, stage).busy[processor]
        return seconds / (steps * setting.model.layers)

    decode = busy("decode", "cpu", "gpu")
    use = setting.memory(_alone(setting, micro_batch, "gpu"), "prefill").vram
    return MicroBatchRun(
        micro_batch=micro_batch,
        prefill_seconds=busy("prefill", "gpu", "gpu"),
        decode_seconds=decode,
        attention_gpu_seconds=busy("decode", "gpu", "gpu") - decode,
        attention_cpu_seconds=busy("decode", "cpu", "cpu"),
        intermediate_bytes=use["intermediates of a micro-batch"] + use["intermediates of experts"],
    )


def _alone(setting: Setting, micro_batch: int, attention: Device) -> StagePlan:
    return StagePlan(
        qkv="gpu",
        attention=attention,
        output="gpu",
        micro_batch=micro_batch,
        block=micro_batch,
        coalesced=False,
        fetches_overlap=False,
        experts=spread(setting.model, 0),
        kv_gpu_share=1.0 if attention == "gpu" else 0.0,
    )


def block_costs(
    setting: Setting, run: MicroBatchRun, block: int, memory_share: float
) -> BlockCosts:
    """The program's constants for blocks of ``block`` sequences, with mean lengths for s and n.

    The output head and the embedding belong to no layer; their bytes are taken off the memories.
    """
    model, workload, hardware = setting.model, setting.workload, setting.hardware
    to_gpu, to_host = hardware.host_to_device, hardware.device_to_host
    assert to_gpu is not None, "HardwareSpec has links wherever it has a GPU"
    assert to_host is not None, "HardwareSpec has links wherever it has a GPU"
    prompt, output = (
        tokens / workload.batch for tokens in (workload.input_tokens, workload.output_tokens)
    )
    vram, host = memory_budgets(setting, memory_share, memory_share)
    hidden_bytes = model.hidden * model.element_bytes
    count = block / run.micro_batch
    return BlockCosts(
        layers=model.layers,
        decode_steps=max(output - 1, 0.0),
        layer_bytes=(model.total_bytes - model.vocabulary_bytes) / model.layers,
        prefill_hidden_bytes=prompt * block * hidden_bytes,
        decode_hidden_bytes=block * hidden_bytes,
        new_cache_bytes=(prompt + 1) * block * model.kv_bytes,
        cache_bytes=(prompt + output) * block * model.kv_bytes,
        micro_batch_hidden_bytes=prompt * run.micro_batch * hidden_bytes,
        intermediate_bytes=run.intermediate_bytes,
        prefill_compute=count * run.prefill_seconds,
        decode_compute=count * run.decode_seconds,
        attention_gpu=count * run.attention_gpu_seconds,
        attention_cpu=count * run.attention_cpu_seconds,
        to_gpu=to_gpu.bytes_per_second,
        to_host=to_host.bytes_per_second,
        from_disk=hardware.disk_bytes_per_second,
        vram=max(vram - model.head_bytes, 1.0),
        host=max(host - model.vocabulary_bytes, 1.0),
        disk=memory_share * hardware.disk_bytes,
    )
