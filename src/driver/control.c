// SPDX-License-Identifier: GPL-2.0
/*
 * The names of the control device. With both of them, depmod lists the node in
 * modules.devname, from which kmod makes it when the machine starts; opening it
 * loads the module then.
 */
#include <linux/cloop.h>
#include <linux/miscdevice.h>
#include <linux/module.h>

MODULE_ALIAS("devname:cloop-control");
MODULE_ALIAS_MISCDEV(CLOOP_CONTROL_MINOR);
