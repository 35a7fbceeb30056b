"""What holds for all tests."""

import os

from hypothesis import settings

# The same examples in every run, so that a failure is the change's. HYPOTHESIS_PROFILE=random looks
# for others.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("random")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
