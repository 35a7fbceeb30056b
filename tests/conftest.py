"""What holds for all tests."""

import os
from importlib.util import find_spec

from hypothesis import settings

# The same examples in every run, so that a failure is the change's. HYPOTHESIS_PROFILE=random looks
# for others.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("random")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# tests/ipex needs PyTorch 2.8: `make test-ipex` runs it in an environment of their own.
collect_ignore = [] if find_spec("intel_extension_for_pytorch") else ["ipex"]
