# SPDX-License-Identifier: GPL-2.0
"""What was measured, as data, and as a page of tables."""

from collections.abc import Iterable, Sequence

import figures
import matrix


def cells(samples: Sequence[dict]) -> list[dict]:
    """One entry for each load and peer of each group that was measured, in the order of the matrix."""
    found = []
    for group in matrix.GROUPS:
        of_group = [sample for sample in samples if sample["group"] == group.name]
        for load in group.loads:
            if not load.unit:
                continue
            for peer in group.peers:
                mine = [sample for sample in of_group if sample["peer"] == peer and sample.get("load") == load.name]
                # An error ends the group: it is one of every load that did not come.
                failed = [sample for sample in of_group if sample["peer"] == peer and "load" not in sample]
                if mine or failed:
                    found.append({"group": group.name, "load": load.name, "peer": peer, "unit": load.unit}
                                 | figures.summary(mine + failed, load.unit))
    return found


def ratio(cell: dict, other: dict) -> float | None:
    """How much better `cell` is than `other`: more than 1 is faster, whatever the unit."""
    if not cell.get("median") or not other.get("median"):
        return None
    quotient = cell["median"] / other["median"]
    return 1 / quotient if cell["unit"] == "ms" else quotient


def number(value: float) -> str:
    """Three digits that count, without an exponent."""
    if value >= 10000:
        return f"{value / 1000:.1f}k"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, aligned so that it can be read as it is."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]

    def row(words: Sequence[str]) -> str:
        first, *others = (word.ljust(width) if at == 0 else word.rjust(width)
                          for at, (word, width) in enumerate(zip(words, widths)))
        return f"| {' | '.join([first, *others])} |"

    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:])
    return "\n".join([row(lines[0]), rule, *map(row, lines[1:])]) + "\n"


def _by_peer(group: matrix.Group, found: Sequence[dict]) -> tuple[list[str], dict[tuple[str, str], dict]]:
    """The peers that have a figure, and the cells by load and peer."""
    mine = {(cell["load"], cell["peer"]): cell for cell in found if cell["group"] == group.name}
    return [peer for peer in group.peers if any(key[1] == peer for key in mine)], mine


def _shown(cell: dict | None) -> str:
    if cell is None:
        return "-"
    if not cell["n"]:
        return "failed"
    failed = "!" if cell["errors"] else ""
    return f"{number(cell['median'])}{failed} ±{cell['spread']:.0f}%"


def _detail(cell: dict | None, name: str) -> str:
    return "-" if cell is None or cell.get(name) is None else number(cell[name])


def group_text(group: matrix.Group, found: Sequence[dict]) -> str:
    """The tables of one group: figures, what they cost, and the ratios of cloop to its peers."""
    peers, mine = _by_peer(group, found)
    loads = [load for load in group.loads if load.unit and any(key[0] == load.name for key in mine)]
    if not loads:
        return ""
    text = [f"## {group.title}\n\n"]
    units = sorted({load.unit for load in loads})
    text.append(f"{' and '.join(units)}, median ± half of the range.\n\n")
    rows = [[f"{load.name} ({load.unit})", *(_shown(mine.get((load.name, peer))) for peer in peers)] for load in loads]
    text.append(table(["", *peers], rows))
    moving = [load for load in loads if any(mine.get((load.name, peer), {}).get("bytes") for peer in peers)]
    rows = []
    for load in moving:
        per_gib = load.unit == "MB/s"
        name = "cpu_s_per_gib" if per_gib else "cpu_us_per_op"
        rows.append([f"{load.name}: CPU {'s/GiB' if per_gib else 'us/op'}",
                     *(_detail(mine.get((load.name, peer)), name) for peer in peers)])
        rows.append([f"{load.name}: disk bytes/op",
                     *(_detail(mine.get((load.name, peer)), "disk_bytes_per_op") for peer in peers)])
    if rows:
        text.append("\nCPU time of the whole machine on the host, and bytes that the disk read and wrote.\n\n")
        text.append(table(["", *peers], rows))
    ours = [peer for peer in peers if peer.startswith("cloop")]
    others = [peer for peer in peers if peer not in ours]
    rows = []
    for load in loads:
        for us in ours:
            cell = mine.get((load.name, us))
            ratios = [ratio(cell, mine[load.name, peer]) if cell and (load.name, peer) in mine else None
                      for peer in others]
            rows.append([f"{load.name}: {us}", *("-" if one is None else f"{one:.2f}x" for one in ratios)])
    if rows and others:
        text.append("\nHow much faster cloop is than each peer.\n\n")
        text.append(table(["", *others], rows))
    failures = sorted({f"{peer}: {error}" for (_, peer), cell in mine.items() for error in cell["errors"]})
    text += [f"\nFailed: {failure}\n" for failure in failures]
    return "".join(text)


def page(result: dict) -> str:
    """All tables, for people."""
    text = ["# Measurements\n\n"]
    about = result["about"]
    text += [f"- {name}: {about[name]}\n" for name in sorted(about)]
    text.append("\nPeers:\n\n")
    measured = {cell["peer"] for cell in result["cells"]}
    text += [f"- {peer}: {what}\n" for peer, what in matrix.PEERS.items() if peer in measured]
    text += [f"- left out: {what}: {why}\n" for what, why in matrix.LEFT_OUT.items()]
    for group in matrix.GROUPS:
        tables = group_text(group, result["cells"])
        text += ["\n", tables] if tables else []
    if result.get("native"):
        text += ["\n", native_text(result["native"])]
    return "".join(text)


def native_text(native: dict) -> str:
    """What ran on the host itself."""
    text = ["## On the host, without a kernel in between\n\n"]
    if native.get("engine"):
        rows = [
            [f"{one['load']}, {one['records']}", number(one["delay_us"]), str(one["threads"]), number(one["mb_per_s"]),
             number(one["ops_per_s"]), f"±{one['spread_percent']:.0f}%", number(one["cpu_us_per_op"]),
             number(one["io_per_op"]["read_bytes"]), number(one["io_per_op"]["written_bytes"])]
            for one in native["engine"]
        ]
        text.append(table(["engine", "delay us", "threads", "MB/s", "op/s", "", "CPU us/op", "read/op", "written/op"], rows))
    if native.get("images"):
        rows = [[one["what"], *((number(one["median"]), f"±{one['spread']:.0f}%", number(one["megabytes"]))
                                if "median" in one else (one["error"], "", ""))] for one in native["images"]]
        text += ["\nImages of the same files, in seconds.\n\n", table(["", "s", "", "MB"], rows)]
    return "".join(text)
