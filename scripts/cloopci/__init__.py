# SPDX-License-Identifier: GPL-2.0
"""The parts of the scripts that are more than a few commands.

Everything that runs on the host does with what python3-minimal has; scripts/check verifies it.
"""
