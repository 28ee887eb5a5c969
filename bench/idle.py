"""The row `idle`: what a site with ten servers costs when nobody asks anything of it. No goal, so it is not in results.csv.

It is a site of its own, because the other rows leave servers behind that autovacuum still works on.
"""

import pathlib
import time

from holdfast import Site
from meter import TICK, rss_anon

SERVERS = 10
MINUTES, QUICK_MINUTES = 3, 1
# Seconds without a write to a store after which a new site is idle, and how long that is waited for.
QUIET, QUICK_QUIET, AT_MOST = 60, 20, 300


def measure(peers):
    quick = peers.options.quick
    site = Site(peers.options.binary, str(peers.folder / "idle-state"))
    peers.sites.append(site)
    group = peers.groups.group("idle")
    site.up(group.inside)
    pid = site.facts["pid"]
    group.started(pid)
    names = [f"idle-{number}" for number in range(SERVERS)]
    for headers in [site.ask_for(name) for name in names]:
        site.finish(headers)
    for name in names:
        site.backed_up(name)
    site.quiet(QUICK_QUIET if quick else QUIET, at_most=AT_MOST)

    minutes = QUICK_MINUTES if quick else MINUTES
    start, own, everything = time.monotonic(), cpu(pid), group.cpu()
    puts, stored = site.requests()["puts"], site.stored()
    peak, end = 0, start + 60 * minutes
    while time.monotonic() < end:
        peak = max(peak, rss_anon(pid))
        time.sleep(1)
    minutes = (time.monotonic() - start) / 60
    # The site tells its requests twice a minute at most: a short run is off by as much.
    peers.add("idle", "holdfast", servers=SERVERS, anon=peak / 2**20, cpu_minute=(cpu(pid) - own) / minutes,
              all_minute=(group.cpu() - everything) / minutes, puts_minute=(site.requests()["puts"] - puts) / minutes,
              stored_minute=(site.stored() - stored) / 1e6 / minutes, minutes=minutes)
    site.destroy()


def cpu(pid):
    """Seconds of this one process, without PostgreSQL's."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK
