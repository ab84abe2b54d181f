"""``python -m torchserve_ensemble`` is ``ts-ensemble``."""

import sys

from .cli import main

sys.exit(main())
