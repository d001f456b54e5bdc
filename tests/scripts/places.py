# SPDX-License-Identifier: GPL-2.0
"""Lets the tests import what they test."""

import pathlib
import sys

SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent
for place in ("scripts", "selftests"):
    sys.path.insert(0, str(SOURCE / place))
