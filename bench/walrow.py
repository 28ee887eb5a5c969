"""The row `wal`: how fast log that is there becomes durable in the store, compressed and encrypted.

Holdfast streams, so a backlog does not come about by itself: the server's walsender is held (SIGSTOP) while
segments are written, and what is measured begins when it may go on. The same segments, copied out of pg_wal,
are then archived by pgBackRest as PostgreSQL's archiver would: one shell and one archive-push a segment, in
order, `.ready` renamed to `.done`; once synchronously and once asynchronously. PostgreSQL's own archiver is
not in it: its share would be the same for all who use one.

`stream`, measured before, is the same log without holding anything: bounded by how fast the server writes it.
"""

import os
import pathlib
import re
import shutil
import signal
import sys
import time

from cluster import number_of
from holdfast import LIMIT
from meter import Cgroup, Meter, flush, run

SEGMENTS, SEGMENT_BYTES = 20, 16 << 20
ROWS_A_STEP = 100_000
SLOT = "holdfast"
# An object of the log in the store: from where to where.
WHOLE = re.compile("[0-9A-F]{16}-[0-9A-F]{16}")


def measure(peers, turn):
    cluster = peers.clusters["a"]
    session = cluster.session()
    try:
        stream(peers, cluster, session)
        archive = pathlib.Path(peers.folder, "archive")
        names = drain(peers, cluster, session, archive)
    finally:
        session.close()
    for mode in ("sync", "async") if turn % 2 == 0 else ("async", "sync"):
        push(peers, archive, names, mode)
    copy(peers, archive, names)
    shutil.rmtree(archive / "pg_wal")
    # The next restore begins here: replaying a burst is no part of any row.
    peers.site.do("PUT", peers.site.server(cluster.name) + f"/backups/w{turn}")
    if turn:
        peers.site.do("DELETE", peers.site.server(cluster.name) + f"/backups/w{turn - 1}")


def burst(cluster, session):
    """Writes so many segments of inserts and updates, pages included, and ends the last one. From where to where."""
    session.ask("SELECT pg_switch_wal()")
    begin = end = number_of(cluster.lsn())
    session.ask("CREATE TABLE burst AS TABLE pgbench_accounts WITH NO DATA")
    step = 0
    while end - begin < SEGMENTS * SEGMENT_BYTES:
        first = step * ROWS_A_STEP % (ROWS_A_STEP * 10)
        session.ask(f"INSERT INTO burst SELECT * FROM pgbench_accounts WHERE aid > {first} AND aid <= {first + ROWS_A_STEP}")
        session.ask("UPDATE burst SET abalance = abalance + 1 WHERE aid % 20 = 0")
        end, step = number_of(session.ask("SELECT pg_current_wal_flush_lsn()")), step + 1
    end = number_of(session.ask("SELECT pg_switch_wal()"))
    session.ask("DROP TABLE burst")
    return begin, end


def wait_for(store, begin, end):
    """Until every byte in between lies in the store. The slot would tell it seconds later."""
    limit = time.monotonic() + LIMIT
    reached = begin
    while reached < end:
        if time.monotonic() > limit:
            sys.exit("the log does not become durable")
        time.sleep(0.01)
        spans = sorted(tuple(int(half, 16) for half in name.split("-")) for name in os.listdir(store) if WHOLE.fullmatch(name))
        reached = begin
        for start, stop in spans:
            if start > reached:
                continue
            reached = max(reached, stop)


def store_of(peers, cluster, session):
    """Where the server's log lies. A directory is named after its incarnation, in the node as in the store."""
    incarnation = pathlib.Path(cluster.data).parent.name
    timeline = int(session.ask("SELECT timeline_id FROM pg_control_checkpoint()"))
    found = list(pathlib.Path(peers.site.state, "vaults").glob(f"**/wal/{incarnation}/{timeline:08X}"))
    return found[0] if len(found) == 1 else sys.exit(f"the log lies in {found}")


def stream(peers, cluster, session):
    os.sync()
    site = peers.holdfast_groups[:1]
    store = store_of(peers, cluster, session)
    with Meter(site, lambda: [peers.pid]) as meter:
        begin, end = burst(cluster, session)
        written = meter.split()[0]
        wait_for(store, begin, end)
    megabytes = (end - begin) / 1e6
    # The server's CPU went into writing: not counted.
    peers.add("wal stream", "holdfast", rate=megabytes / meter.wall, per_cpu=megabytes / max(meter.cpu, 0.01),
              behind=meter.wall - written, peak=meter.peak / 2**20)


def drain(peers, cluster, session, archive):
    sender = int(session.ask(f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{SLOT}'"))
    store = store_of(peers, cluster, session)
    os.kill(sender, signal.SIGSTOP)
    try:
        begin, end = burst(cluster, session)
        # Whole segments of this burst, as an archiver would be given them.
        wal = pathlib.Path(cluster.data, "pg_wal")
        into = archive / "pg_wal"
        (into / "archive_status").mkdir(parents=True)
        timeline = int(session.ask("SELECT timeline_id FROM pg_control_checkpoint()"))
        names = [name_of(timeline, number) for number in range(begin // SEGMENT_BYTES, -(-end // SEGMENT_BYTES))]
        for name in names:
            shutil.copyfile(wal / name, into / name)
        if not (archive / "global").exists():
            (archive / "global").mkdir()
            shutil.copyfile(pathlib.Path(cluster.data, "global/pg_control"), archive / "global/pg_control")
            for mode in ("sync", "async"):
                peers.pgbackrest.archive(mode, archive)
        os.sync()
        meter = Meter(peers.holdfast_groups, lambda: [peers.pid])
        meter.__enter__()
        site = peers.holdfast_groups[0]
        before = site.cpu()
    finally:
        os.kill(sender, signal.SIGCONT)
    wait_for(store, begin, end)
    meter.__exit__()
    # The rest is the walsender's.
    tell(peers, "holdfast", meter, len(names), ms_site=1000 * (site.cpu() - before) / len(names))
    return names


def push(peers, archive, names, mode):
    """As the archiver calls it."""
    status = archive / "pg_wal/archive_status"
    for name in names:
        (status / f"{name}.ready").touch()
    os.sync()
    options = ["--archive-async", "--archive-timeout=60"] if mode == "async" else []
    with Meter([peers.tool], peers.tool.pids) as meter:
        for name in names:
            words = peers.pgbackrest.words(mode, "archive-push", *options, f"pg_wal/{name}")
            code, said = run(peers.tool, ["sh", "-c", '"$@"', "sh", *words], cwd=str(archive))
            if code:
                sys.exit(f"archive-push {name}: exit {code}\n{said}")
            (status / f"{name}.ready").rename(status / f"{name}.done")
        drained = meter.split()
        # The asynchronous process looks once more for work before it ends.
        limit = time.monotonic() + 60
        while peers.tool.pids() and time.monotonic() < limit:
            time.sleep(0.02)
    meter.wall = drained[0]
    tell(peers, f"pgbackrest {mode}", meter, len(names))
    for name in names:
        (status / f"{name}.done").unlink()


def copy(peers, archive, names):
    target = peers.empty("segments")
    os.sync()
    with Meter([peers.tool], peers.tool.pids) as meter:
        for name in names:
            run(peers.tool, ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", archive / "pg_wal" / name, f"{target}/{name}"])
        flush(target)
    tell(peers, "floor: cp, fsync", meter, len(names))
    shutil.rmtree(target)


def tell(peers, tool, meter, count, **more):
    figures = {"segments_s": count / meter.wall, "rate": count * SEGMENT_BYTES / 1e6 / meter.wall}
    # A process that nobody waits for is not in a tree.
    if tool != "pgbackrest async" or isinstance(peers.tool, Cgroup):
        figures |= {"ms_segment": 1000 * meter.cpu / count, "peak": meter.peak / 2**20}
    peers.add("wal", tool, **figures, **more)


def name_of(timeline, number):
    in_a_log = (1 << 32) // SEGMENT_BYTES
    return f"{timeline:08X}{number // in_a_log:08X}{number % in_a_log:08X}"
