"""The goals of docs/PERFORMANCE.md, judged by what was measured, and the tables that a person reads.

A ratio is taken within a round, Holdfast and its peer minutes apart; shown are the median of all rounds and
the least and greatest. A goal is met when its median is."""

import math
import statistics

from holdfast import percentile

MINE, PEER = "holdfast", "pgbackrest zst 1"
SYNC, ASYNC = "pgbackrest sync", "pgbackrest async"
FLOOR = "floor: cp"
TEN_GB, MIB_64 = 10e9, 64
UNITS = {"wall": "s", "cpu": "s CPU", "stored": "MB stored", "peak": "MiB peak", "level": "MiB before",
         "answers": "s until it answers", "changed": "MB changed", "segments_s": "segments/s", "ms_segment": "ms CPU/segment",
         "ms_site": "ms of them the site's",
         "rate": "MB/s", "per_cpu": "MB/s CPU", "behind": "s behind", "tps": "TPS", "seconds": "s long", "servers": "servers",
         "anon": "MiB anonymous", "cpu_minute": "s CPU/minute", "all_minute": "s CPU/minute with all PostgreSQL",
         "puts_minute": "writes to stores/minute", "stored_minute": "MB stored/minute", "minutes": "minutes"}


class Comparison:
    """What each tool saw, in which unit: ours first, then the peer that is judged by, then the others of the row;
    and the ratios, round by round. `peer` is None where the figures stand for themselves."""

    def __init__(self, bars, unit, ratios, over=None, peer=None):
        self.bars, self.unit, self.ratios, self.over, self.peer = bars, unit, ratios, over, peer

    def line(self, bound):
        """Where our bar has to end, going by the peer's median."""
        if self.peer is None:
            return bound
        peer = statistics.median(self.bars[self.peer])
        return peer * bound if self.over == MINE else peer / bound


def compare(a, of_a, over, b, of_b, under):
    pairs = [(one[of_a], other[of_b]) for one, other in zip(a, b) if other[of_b]]
    bars = {over: [one for one, _ in pairs], under: [other for _, other in pairs]}
    ordered = {tool: bars[tool] for tool in sorted(bars, key=MINE.__ne__)}
    peer = under if over == MINE else over
    return Comparison(ordered, UNITS[of_a], [one / other for one, other in pairs], over, peer)


def peaks_of(samples):
    """Of each tool its greatest peak in any row; and by how much ours grew at most during the work."""
    peaks, grown = {MINE: []}, []
    for tools in samples.values():
        for tool, found in tools.items():
            # A floor keeps nothing in memory, and ages are not of a tool.
            values = [one["peak"] for one in found if isinstance(one, dict) and "peak" in one]
            if values and not tool.startswith("floor"):
                peaks[tool] = [max([*peaks.get(tool, []), *values])]
        grown += [one["peak"] - one["level"] for one in tools.get(MINE, []) if "level" in one]
    return peaks, [max(grown)] if grown else []


def judge(facts, samples):
    """One entry a goal: what is wanted, what was seen, and whether that is enough."""
    judged = []
    blocks = None if facts["blocks"] else f"{facts['pgbackrest']} has no blocks (2.46 and later)"
    old = facts["postgresql"] < 17
    small = {name: size < TEN_GB for name, size in facts["bytes"].items()}

    def goal(what, wanted, seen, why=None, unit="x"):
        """`wanted` is `>= 3` or `<= 0.5`; `seen` a comparison, or figures that stand for themselves."""
        word, _, bound = wanted.partition(" ")
        bound = float(bound)
        entry = {"goal": what, "wanted": f"{wanted} {unit}".replace(" x", "x"), "bound": bound, "unit": unit, "met": "not measured"}
        if not isinstance(seen, Comparison):
            seen = Comparison({MINE: seen}, unit, seen)
        if why or not seen.ratios:
            entry["why"] = why or "the row was not asked for"
        else:
            values = seen.ratios
            middle = statistics.median(values)
            entry |= {"median": middle, "least": min(values), "greatest": max(values), "values": values,
                      "bars": seen.bars, "bars_in": seen.unit, "peer": seen.peer, "line": seen.line(bound)}
            entry["met"] = "yes" if (middle >= bound if word == ">=" else middle <= bound) else "no"
        judged.append(entry)

    def ratio(row, figure, over, under):
        tools = samples.get(row, {})
        seen = compare(tools.get(over, []), figure, over, tools.get(under, []), figure, under)
        for tool, found in tools.items():
            if tool not in seen.bars and (values := [one[figure] for one in found if figure in one]):
                seen.bars[tool] = values
        return seen

    for name, near, far in (("a", 3, 2), ("b", 4, 3)):
        data = name.upper()
        wall = ratio(f"full {name}", "wall", PEER, MINE)
        goal(f"full backup of {data}, wall: times faster than pgBackRest", f">= {near}", wall,
             None if small[name] else "it is larger than this goal is for")
        goal(f"full backup of {data} from 10 GB on, wall: times faster than pgBackRest", f">= {far}", wall,
             f"{data} is {facts['bytes'][name] / 1e9:.1f} GB: give a greater --scale" if small[name] else None)
    for name, bound in (("a", 0.5), ("b", 0.35)):
        goal(f"full backup of {name.upper()}, CPU: part of pgBackRest's", f"<= {bound}", ratio(f"full {name}", "cpu", MINE, PEER))
    peaks, grown = peaks_of(samples)
    goal("peak anonymous memory in any row, of the whole site", f"<= {MIB_64}",
         Comparison(peaks, "MiB", peaks.get(MINE, [])), unit="MiB")
    goal("peak anonymous memory in any row, over what the site had before the work", f"<= {MIB_64}", grown, unit="MiB")
    for name, bound in (("a", 0.25), ("b", 1 / 6)):
        data = name.upper()
        goal(f"increment of {data} (2 % changed), wall: times faster than pgBackRest's blocks", ">= 4" if old else ">= 10",
             ratio(f"diff {name}", "wall", PEER, MINE), blocks)
        goal(f"increment of {data}, bytes: part of pgBackRest's blocks", f"<= {bound:.3g}",
             ratio(f"diff {name}", "stored", MINE, PEER), blocks)
        changes = [one for one in samples.get(f"diff {name}", {}).get(MINE, []) if one["changed"]]
        goal(f"increment of {data}, bytes: times those of the changed pages", "<= 1.1",
             compare(changes, "stored", MINE, changes, "changed", "changed pages"))
    goal("increment, time from 1 GB to 100 GB at a fixed change (17 and later)", "<= 1.2", [],
         "needs PostgreSQL 17 and 100 GB")
    for name in ("a", "b"):
        data = name.upper()
        goal(f"restore of {data}, wall: times faster than pgBackRest", ">= 2", ratio(f"restore {name}", "wall", PEER, MINE))
        goal(f"restore of {data}, wall: times the raw write floor's", "<= 1.5", ratio(f"restore {name}", "wall", MINE, FLOOR))
    goal("log drained, segments a second: times pgBackRest's synchronous", ">= 6", ratio("wal", "segments_s", MINE, SYNC))
    goal("log drained, segments a second: times pgBackRest's asynchronous", ">= 4", ratio("wal", "segments_s", MINE, ASYNC))
    goal("CPU a segment: part of pgBackRest's synchronous", "<= 0.35", ratio("wal", "ms_segment", MINE, SYNC))
    for when in ("busy", "idle"):
        ages = samples.get("age", {}).get(when, [])
        goal(f"age of the recovery point, {when}, p99", "<= 2", [percentile(ages, 0.99)] if ages else [], unit="s")
    goal("PITR, start to read-write at 50 ms store latency: times plain cp's", "<= 1.1", [],
         "the stores of this run are folders, without latency")
    goal("PITR, replay, bounded by how often backups are made", "<= 60", [], "that shows in hours, not in this run", "s")
    goal("snapshot driver, backup without its checkpoint", "<= 1", [], "bench/frozen measures it", "s")
    goal("snapshot driver, restore to read-write without the log", "<= 3", [], "bench/frozen measures it", "s")
    goal(f"TPS kept during a backup, paced ({facts['pace']} MiB/s): part of the idle", ">= 0.9", ratio("paced", "tps", MINE, "idle"))
    goal("TPS kept during a backup, unpaced: part of the idle", ">= 0.7", ratio("tps", "tps", MINE, "idle"))
    goal("TPS kept during a backup: times what pgBackRest's leaves", ">= 1", ratio("tps", "tps", MINE, PEER))
    return judged


def number(value):
    digits = 0 if abs(value) >= 1000 else max(0, 2 - (math.floor(math.log10(abs(value))) if abs(value) >= 0.1 else -1))
    return f"{value:.{min(digits, 3)}f}"


def spread(values):
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))}–{number(max(values))})"


def show(facts, samples, judged, out):
    def say(text=""):
        print(text, file=out)

    sizes = ", ".join(f"{name.upper()} {size / 1e6:,.0f} MB" for name, size in facts["bytes"].items())
    say(f"{facts['cpus']} CPUs, Linux {facts['kernel']}, PostgreSQL {facts['postgresql']}, {facts['pgbackrest']}; "
        f"scale {facts['scale']} ({sizes}), rounds: {facts['rounds']}; CPU by {facts['accounting']}; "
        f"sched_autogroup {'on' if facts['autogroup'] else 'off'}."
        + (" quick: not for judging." if facts["quick"] else ""))
    say("Holdfast is the whole site: API, scheduler, eight agents and metadata store, in CPU and in memory; "
        f"without work {facts['levels']['up'] / 2**20:.0f} MiB after the start, {facts['levels']['loaded'] / 2**20:.0f} after the load.")
    for row, tools in samples.items():
        if row == "age":
            for when, ages in tools.items():
                say(f"\nage of the recovery point, {when}: p50 {percentile(ages, 0.5):.2f} s, p99 {percentile(ages, 0.99):.2f} s"
                    f" ({len(ages)} looks)")
            continue
        say(f"\n{row}: median (least–greatest)")
        for tool, found in tools.items():
            figures = [f"{spread([one[name] for one in found])} {UNITS[name]}" for name in found[0]]
            say(f"  {tool:22} " + ", ".join(figures))
    say("\n| Goal | Wanted | Median (least–greatest) | Met |\n| --- | --- | --- | --- |")
    for one in judged:
        seen = f"{spread(one['values'])} {one['unit']}".replace(" x", "x") if "values" in one else one["why"]
        say(f"| {one['goal']} | {one['wanted']} | {seen} | {one['met']} |")
