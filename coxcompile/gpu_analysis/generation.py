"""Compiling what the table of configurations is chosen from, in several processes."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

from coxcompile.gpu_analysis.analysis import Analysis, analyse, objection
from coxcompile.gpu_analysis.candidates import BLOCK_TOKENS, candidates, estimated_seconds
from coxcompile.gpu_analysis.checking import Key, form_objection
from coxcompile.gpu_analysis.expected_routing import ExpertLayer
from coxcompile.gpu_analysis.products import PRODUCTS, ProductName, products
from coxcompile.gpu_analysis.selection import BUCKETS, cases, geometric_mean, rows
from coxcompile.gpu_analysis.targets import Target, target_named
from coxcompile.runtime.kernels.gpu.configurations import ProductConfiguration, Row

PROCESSES = 2
KEPT = 4
"""Configurations of a product and ``block_tokens`` that are compared by their machine code."""
TRIED = 16
"""That are compiled at most to find so many."""
LIKE = {"float16": "bfloat16", "int8": "float8"}
"""Weights that are compared by the machine code of others of their size, and checked by their own:
instructions differ in types only, or in those few that convert."""


def generate(
    targets: Sequence[Target],
    weights: Sequence[str],
    layers: Sequence[ExpertLayer],
    progress: Callable[[str], None] = lambda done: None,
) -> list[Row]:
    """The table of configurations, chosen by prediction.

    A configuration that is chosen has no spills and the widest matrix instructions in all forms of
    the kernels that :func:`~coxcompile.gpu_analysis.compiling.other_forms` names.

    Args:
        targets: the GPUs.
        weights: what they are stored as.
        layers: that rows are chosen by, and that get rows of their own where these are faster.
        progress: called with what has been compiled.
    """
    layers = tuple(layers)
    keys: list[Key] = [
        (target.name, stored, name, block_tokens)
        for target in targets
        for stored in weights
        for name in PRODUCTS
        for block_tokens in BLOCK_TOKENS
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        like = {key: (key[0], LIKE.get(key[1], key[1]), *key[2:]) for key in keys}
        compiled = {key: pool.submit(usable, *key, layers) for key in dict.fromkeys(like.values())}
        analyses: dict[Key, list[Analysis]] = {}
        for key in keys:
            analyses[key] = compiled[like[key]].result()
            progress(f"{' '.join(map(str, key))}: {len(analyses[key])} configurations")
        right: set[tuple[Key, ProductConfiguration]] = set()
        while True:
            chosen = _choose(targets, weights, analyses, layers)
            unknown = {part for row in chosen for part in _parts(row)} - right
            if not unknown:
                return chosen
            checks = {
                part: pool.submit(form_objection, *part) for part in sorted(unknown, key=repr)
            }
            for (key, configuration), check in checks.items():
                if found := check.result():
                    kept = [one for one in analyses[key] if one.configuration != configuration]
                    analyses[key] = kept
                    progress(f"{' '.join(map(str, key))}: {configuration} {found}")
                else:
                    right.add((key, configuration))


def _choose(
    targets: Sequence[Target],
    weights: Sequence[str],
    analyses: Mapping[Key, Sequence[Analysis]],
    layers: Sequence[ExpertLayer],
) -> list[Row]:
    result = []
    for target in targets:
        for stored in weights:
            mine = {
                (name, block_tokens): analyses[target.name, stored, name, block_tokens]
                for name in PRODUCTS
                for block_tokens in BLOCK_TOKENS
            }
            result += rows(target, stored, mine, layers, layers)
    return result


def _parts(row: Row) -> Iterator[tuple[Key, ProductConfiguration]]:
    for name in PRODUCTS:
        key = (row.device, row.weights, name, row.configuration.block_tokens)
        yield key, getattr(row.configuration, name)


def usable(
    target_name: str,
    weights: str,
    name: ProductName,
    block_tokens: int,
    layers: Sequence[ExpertLayer],
) -> list[Analysis]:
    """The likeliest candidates that may be defaults, compiled in the order of their estimates."""
    target, index = target_named(target_name), PRODUCTS.index(name)
    product = products(layers[0], weights)[index]
    compared = [
        case
        for bucket in BUCKETS
        if block_tokens // 4 <= bucket <= 16 * block_tokens
        for case in cases(layers, bucket)
    ]
    ordered = sorted(
        candidates(target, product, block_tokens),
        key=lambda one: geometric_mean(
            estimated_seconds(
                target,
                case.layer,
                case.tokens,
                products(case.layer, weights)[index],
                one,
                block_tokens,
            )
            for case in compared
        ),
    )
    kept: list[Analysis] = []
    for configuration in ordered[:TRIED]:
        analysis = analyse(target, product, block_tokens, configuration, in_full=False)
        if objection(target, product, analysis) is None:
            kept.append(analysis)
            if len(kept) == KEPT:
                break
    return kept
