"""Runs ``ts-ensemble`` as ``python -m torchserve_ensemble``."""

import sys

from .cli import main

sys.exit(main())
