#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""Prints the kernel's uevents, one a line: their variables, separated by spaces.

    uevents.py

The first line, "ready", says that from there on no event is missed. Ends when it is killed.
"""

import socket

NETLINK_KOBJECT_UEVENT = 15

events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)
events.bind((0, 1))
print("ready", flush=True)
while True:
    # The first part, ACTION@DEVPATH, repeats the variables.
    _, *variables = events.recv(65536).rstrip(b"\0").split(b"\0")
    print(b" ".join(variables).decode(errors="replace"), flush=True)
