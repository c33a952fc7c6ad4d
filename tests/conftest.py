"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# A landing must not depend on the draw of examples; HYPOTHESIS_PROFILE=search draws new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
