# SPDX-License-Identifier: GPL-2.0
"""Measuring cloop beside what else there is: see Documentation/testing.rst.

`host` runs the machines and writes the report; `matrix` says what is measured, and on what. `guest`, `peers` and `work`
run inside the machine. Nothing here decides whether a figure is good.
"""
