# SPDX-License-Identifier: GPL-2.0
"""From what programs say to figures, and from repetitions to medians."""

import bisect
from collections.abc import Iterable, Sequence

# Fields of /sys/block/NAME/stat, by position (Documentation/block/stat.rst of the kernel).
_DISK = {"reads": 0, "read_bytes": 2, "writes": 4, "written_bytes": 6, "discards": 11, "discarded_bytes": 13,
         "flushes": 15}
_SECTOR = 512


def disk_counters(stat: str) -> dict[str, int]:
    """The exact counts of I/O that a disk has done."""
    fields = [int(word) for word in stat.split()]
    return {name: fields[at] * (_SECTOR if name.endswith("_bytes") else 1) for name, at in _DISK.items()}


def difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    """What has happened between two states of counters."""
    return {name: after[name] - before[name] for name in after}


def of_fio(output: dict) -> dict:
    """What counts of the JSON output of fio, for one job or for a group of them that is reported as one."""
    job = output["jobs"][0]
    if job["error"]:
        raise ValueError(f"fio: error {job['error']}")
    read, write = job["read"], job["write"]
    busy = max(read, write, key=lambda side: side["total_ios"])
    operations = read["total_ios"] + write["total_ios"]
    if not operations:
        raise ValueError("fio has done nothing")
    begin, runtime = job["job_start"], max(read["runtime"], write["runtime"])
    latency = busy["clat_ns"].get("percentile", {}).get("99.000000")
    return {
        "bytes": read["io_bytes"] + write["io_bytes"],
        "operations": operations,
        # By runtime, which includes the fsync at the end.
        "mb_per_s": (read["bw_bytes"] + write["bw_bytes"]) / 1e6,
        "iops": read["iops"] + write["iops"],
        "p99_us": None if latency is None else latency / 1e3,
        # Without the time in which fio starts and ends, which is longer than some loads.
        "begin": begin / 1e3,
        "end": (begin + runtime) / 1e3,
    }


def value(sample: dict, unit: str) -> float:
    """The figure of a sample that is shown."""
    if unit == "ms":
        return (sample["end"] - sample["begin"]) * 1e3
    return sample["mb_per_s" if unit == "MB/s" else "iops"]


def median(values: Iterable[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no median of nothing")
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def spread(values: Sequence[float]) -> float:
    """Half of the range, in percent of the median: what stands behind ± in the tables."""
    middle = median(values)
    return (max(values) - min(values)) / middle * 50 if middle else 0.0


def at(series: Sequence[tuple[float, float]], moment: float) -> float | None:
    """The value of a rising series of (time, value) at a moment, between its points by proportion."""
    if not series or not series[0][0] <= moment <= series[-1][0]:
        return None
    index = bisect.bisect_right(series, moment, key=lambda point: point[0])
    (begin, before), (end, after) = series[max(index - 1, 0)], series[min(index, len(series) - 1)]
    return before if end == begin else before + (after - before) * (moment - begin) / (end - begin)


def add_cpu(samples: Iterable[dict], series: Sequence[tuple[float, float]]) -> None:
    """Adds to each sample the seconds of CPU that the host spent on it, if they are known."""
    for sample in samples:
        begin, end = at(series, sample["begin"]), at(series, sample["end"])
        sample["cpu_s"] = None if begin is None or end is None else end - begin


def summary(samples: Sequence[dict], unit: str) -> dict:
    """One cell: medians of all that was measured of one load on one peer."""
    good = [sample for sample in samples if not sample.get("error")]
    errors = sorted({sample["error"] for sample in samples if sample.get("error")})
    if not good:
        return {"n": 0, "errors": errors}
    values = [value(sample, unit) for sample in good]
    cell = {"n": len(good), "median": median(values), "spread": spread(values), "values": values, "errors": errors}
    if all("disk" in sample for sample in good):
        cell["disk"] = {name: median(sample["disk"][name] for sample in good) for name in good[0]["disk"]}
    moved = [sample for sample in good if sample.get("bytes")]
    if moved:
        cell["bytes"] = median(sample["bytes"] for sample in moved)
        cell["operations"] = median(sample["operations"] for sample in moved)
        if all(sample.get("cpu_s") is not None for sample in moved):
            cell["cpu_s_per_gib"] = median(sample["cpu_s"] * (1 << 30) / sample["bytes"] for sample in moved)
            cell["cpu_us_per_op"] = median(sample["cpu_s"] * 1e6 / sample["operations"] for sample in moved)
        if cell.get("disk"):
            per_operation = [
                (sample["disk"]["read_bytes"] + sample["disk"]["written_bytes"]) / sample["operations"]
                for sample in moved
            ]
            cell["disk_bytes_per_op"] = median(per_operation)
    return cell
