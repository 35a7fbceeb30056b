"""transformers' own ``generate``, which compiles decoding with the backend it is given."""

import torch
from transformers import CompileConfig, GenerationConfig

from tests.models import build


def test_generate_decodes_with_this_backend() -> None:
    torch._dynamo.reset()
    model = build("qwen3_moe", dtype=torch.float32)
    ids = torch.randint(1, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    settings = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": "static"}
    compile_config = CompileConfig(backend="coxmoe")
    # transformers compiles for CPUs only on this request.
    compile_config._compile_all_devices = True

    expected = model.generate(ids, GenerationConfig(**settings, disable_compile=True))
    compiled = model.generate(ids, GenerationConfig(**settings, compile_config=compile_config))

    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert torch.equal(compiled, expected)
