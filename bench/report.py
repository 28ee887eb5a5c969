"""What a run leaves in a folder: `results.csv`, one line a goal, and one plot a goal."""

import csv
import pathlib
import re
import statistics
import textwrap
from xml.sax.saxutils import escape

from goals import MINE, number

COLUMNS = ("goal", "ours", "peer", "peer_name", "ratio", "target", "met")
WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 760, 170, 120, 64, 26, 16
SMALL_CHARACTERS, SMALL_LINE = 126, 14
OURS, THEIRS, TARGET, INK, PALE = "#1f6f5c", "#a9b3ba", "#c2410c", "#1c2428", "#5f6b73"


def write(folder, judged, small_print):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "results.csv", "w", newline="") as file:
        lines = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        lines.writeheader()
        lines.writerows(line(one) for one in judged)
    for one in judged:
        (folder / f"{slug(one['goal'])}.svg").write_text(plot(one, small_print))


def line(one):
    """Medians. Without a peer the figure itself is judged, and there is no ratio."""
    found = {"goal": one["goal"], "target": one["wanted"], "met": one["met"]}
    if "bars" in one:
        found["ours"] = f"{statistics.median(one['bars'][MINE]):.6g}"
        if peer := one["peer"]:
            found |= {"peer": f"{statistics.median(one['bars'][peer]):.6g}", "peer_name": peer,
                      "ratio": f"{one['median']:.4g}"}
    return found


def slug(text):
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def plot(one, small_print):
    """Bars are medians, whiskers the least and the greatest, the line is where our bar has to end."""
    bars = one.get("bars", {})
    small = [part for said in small_print for part in textwrap.wrap(said, SMALL_CHARACTERS)]
    height = TOP + max(1, len(bars)) * (BAR + GAP) + 32 + SMALL_LINE * len(small)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        text(16, 26, one["goal"], size=15, weight="600"),
        text(16, 46, verdict(one), fill=PALE),
    ]
    parts += drawing(one, bars) if bars else [text(WIDTH / 2, TOP + BAR, "not measured", size=18, fill=PALE, anchor="middle")]
    parts += [text(16, height - 8 - SMALL_LINE * left, said, size=11, fill=PALE)
              for left, said in zip(range(len(small) - 1, -1, -1), small)]
    return "\n".join([*parts, "</svg>", ""])


def drawing(one, bars):
    most = max([one["line"], *(max(values) for values in bars.values())]) or 1
    across = lambda value: LEFT + value / most * (WIDTH - LEFT - RIGHT)
    bottom = TOP + len(bars) * (BAR + GAP)
    labels = []
    for index, (tool, values) in enumerate(bars.items()):
        top, middle = TOP + index * (BAR + GAP), statistics.median(values)
        centre = top + BAR / 2
        yield text(LEFT - 10, centre + 4, tool, anchor="end")
        yield f'<rect x="{LEFT}" y="{top}" width="{across(middle) - LEFT:.1f}" height="{BAR}" fill="{OURS if tool == MINE else THEIRS}"/>'
        if len(values) > 1:
            yield from (stroke(across(a), y1, across(b), y2, INK) for a, y1, b, y2 in (
                (min(values), centre, max(values), centre), *((end, centre - 5, end, centre + 5) for end in (min(values), max(values)))))
        labels.append(text(across(max(values)) + 8, centre + 4, f"{number(middle)} {one['bars_in']}", halo=True))
    yield stroke(across(one["line"]), TOP - 6, across(one["line"]), bottom - GAP + 6, TARGET, "4 3")
    yield text(across(one["line"]), bottom + 8, "target", fill=TARGET, anchor="middle", size=11)
    # Readable where the line goes through them.
    yield from labels


def verdict(one):
    if "bars" not in one:
        return f"target {one['wanted']}; not measured: {one['why']}"
    spread = f"{number(one['median'])}{'' if one['unit'] == 'x' else ' '}{one['unit']}"
    if len(one["values"]) > 1:
        spread += f" (from {number(one['least'])} to {number(one['greatest'])} in {len(one['values'])} rounds)"
    return f"target {one['wanted']}; {spread}: {'met' if one['met'] == 'yes' else 'not met'}"


def text(x, y, said, size=13, fill=INK, anchor="start", weight="400", halo=False):
    around = f'<rect x="{x - 3:.1f}" y="{y - size:.1f}" width="{len(said) * size * 0.58 + 6:.1f}" height="{size + 4}" fill="#ffffff"/>'
    return (around if halo else "") + (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(said)}</text>")


def stroke(x1, y1, x2, y2, colour, dashes="none"):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1.5" '
            f'stroke-dasharray="{dashes}"/>')
