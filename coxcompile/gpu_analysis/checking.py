"""Checking a configuration of the table: compiled on its own, or in every form of the kernels."""

from dataclasses import replace

from coxcompile.gpu_analysis.analysis import analyse, objection
from coxcompile.gpu_analysis.compiling import PLAIN, Form, other_forms
from coxcompile.gpu_analysis.expected_routing import ExpertLayer
from coxcompile.gpu_analysis.products import PRODUCTS, Product, ProductName, products
from coxcompile.gpu_analysis.targets import target_named
from coxcompile.runtime.kernels.gpu.configurations import ProductConfiguration

Key = tuple[str, str, ProductName, int]
"""Target, weights, product and block_tokens."""


def plain_objection(key: Key, configuration: ProductConfiguration) -> str | None:
    """Why a configuration must not be a default for the plainest form of the kernels, or None."""
    return _objection(key, configuration, PLAIN)


def form_objection(key: Key, configuration: ProductConfiguration) -> str | None:
    """Why a configuration must not be a default for some form of the kernels, or None."""
    _, weights, name, _ = key
    # Weights that are not aligned for descriptors are loaded by pointers, from the same tiles.
    for variant in dict.fromkeys((configuration, replace(configuration, descriptors=False))):
        for form in (PLAIN, *other_forms(weights, name)):
            if found := _objection(key, variant, form):
                by_pointers = " by pointers" if variant != configuration else ""
                return f"{found}{by_pointers} in {form}"
    return None


def _objection(key: Key, configuration: ProductConfiguration, form: Form) -> str | None:
    target_name, weights, name, block_tokens = key
    target, product = target_named(target_name), _product(weights, name)
    analysis = analyse(target, product, block_tokens, configuration, form, in_full=False)
    return objection(target, product, analysis)


def _product(weights: str, name: ProductName) -> Product:
    layer = ExpertLayer(name="any", experts=1, top_k=1, hidden=1, intermediate=1)
    return products(layer, weights)[PRODUCTS.index(name)]
