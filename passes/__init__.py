"""The passes, in the order they run. Each is one file named by its verb."""

from coxcompile.passes.coalesce import coalesce
from coxcompile.passes.context import MoEBlock, Pass, PassContext, SkippedBlock
from coxcompile.passes.count_choices import count_choices
from coxcompile.passes.fetch_weights import fetch_weights
from coxcompile.passes.find_layers import find_layers
from coxcompile.passes.find_moe import find_moe
from coxcompile.passes.group_query_heads import group_query_heads
from coxcompile.passes.insert_transfers import insert_transfers
from coxcompile.passes.keep_caches import keep_caches
from coxcompile.passes.lower import lower
from coxcompile.passes.lower_coexecution import lower_coexecution
from coxcompile.passes.micro_batch import micro_batch
from coxcompile.passes.normalize import normalize
from coxcompile.passes.partition import partition
from coxcompile.passes.place import place
from coxcompile.passes.plan import plan
from coxcompile.passes.schedule import schedule
from coxcompile.passes.split_experts import split_experts
from coxcompile.passes.spread_experts import spread_experts
from coxcompile.passes.stream_linears import stream_linears
from coxcompile.passes.use_ipex_experts import use_ipex_experts
from coxcompile.passes.verify import verify

PASSES: tuple[Pass, ...] = (
    normalize,
    find_moe,
    coalesce,
    group_query_heads,
    stream_linears,
    count_choices,
    use_ipex_experts,
    spread_experts,
)

COEXECUTION_PASSES: tuple[Pass, ...] = (
    *(normalize, find_moe, coalesce, group_query_heads),
    *(find_layers, plan, place, micro_batch),
    *(split_experts, keep_caches, fetch_weights, insert_transfers),
    *(partition, schedule, verify),
)
"""With an accelerator, before :func:`lower_coexecution`."""

__all__ = [
    "COEXECUTION_PASSES",
    "PASSES",
    "MoEBlock",
    "Pass",
    "PassContext",
    "SkippedBlock",
    "lower",
    "lower_coexecution",
]
