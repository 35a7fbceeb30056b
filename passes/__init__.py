"""The passes, in the order they run. Each is one file named by its verb."""

from coxcompile.passes.coalesce import coalesce
from coxcompile.passes.context import MoEBlock, Pass, PassContext, SkippedBlock
from coxcompile.passes.count_choices import count_choices
from coxcompile.passes.find_moe import find_moe
from coxcompile.passes.group_query_heads import group_query_heads
from coxcompile.passes.lower import lower
from coxcompile.passes.normalize import normalize
from coxcompile.passes.stream_linears import stream_linears

PASSES: tuple[Pass, ...] = (
    normalize,
    find_moe,
    coalesce,
    group_query_heads,
    stream_linears,
    count_choices,
)

__all__ = ["PASSES", "MoEBlock", "Pass", "PassContext", "SkippedBlock", "lower"]
