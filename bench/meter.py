"""What a piece of work cost: wall time, CPU seconds, anonymous memory. One method for every tool.

CPU is that of whole groups of processes. Where this user may make a cgroup (version 2), a group is one: the
kernel counts, nothing escapes, however short it lives. Elsewhere a group is a tree of processes below /proc,
with what its ended children used. Memory is the sum of RssAnon over the tool's own processes, looked at
every 20 ms, less often where looking is dear: a shorter peak may be missed, page cache and shared buffers are not in it.
"""

import ctypes
import os
import pathlib
import subprocess
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")
LOOK_EVERY = 0.02
LIBC = ctypes.CDLL(None, use_errno=True)


def flush(folder):
    """One syncfs: what lies there is on the disk afterwards."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if LIBC.syncfs(handle):
            raise OSError(ctypes.get_errno(), "syncfs", folder)
    finally:
        os.close(handle)


def rss_anon(pid):
    """Bytes; 0 of a process that has ended."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = status.partition("RssAnon:")[2].split()
    return int(found[0]) * 1024 if found else 0


def processes():
    """Of every process its parent, and CPU seconds with those of children that it has waited for."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = pathlib.Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(name)] = int(fields[1]), sum(map(int, fields[11:15])) / TICK
    return found


class Groups:
    """Makes groups; removes what it made when it is left."""

    def __init__(self):
        self.root, self.made, self.others = self.cgroup(), [], set()

    @staticmethod
    def cgroup():
        """A cgroup of our own, if we may have one that counts CPU."""
        for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            if right.startswith("cgroup2 "):
                own = next((line[3:].strip().lstrip("/") for line in open("/proc/self/cgroup") if line.startswith("0::")), "")
                root = pathlib.Path(left.split()[4], own, f"bench-{os.getpid()}")
                try:
                    root.mkdir()
                    probe = subprocess.Popen(["sleep", "5"])
                    try:
                        (root / "cgroup.procs").write_text(str(probe.pid))
                        counted = "usage_usec" in (root / "cpu.stat").read_text()
                    finally:
                        probe.kill()
                        probe.wait()
                    if counted:
                        return root
                    root.rmdir()
                except OSError:
                    # It was made and cannot be entered.
                    if root.is_dir():
                        root.rmdir()
        return None

    def method(self):
        return "cgroup v2" if self.root else "/proc"

    def group(self, name, pid=None):
        group = Cgroup(self.root / name) if self.root else Tree(self, pid)
        if self.root and pid:
            group.take(pid)
        self.made.append(group)
        return group

    def remove(self):
        for group in self.made:
            group.remove()
        if self.root:
            for _ in range(100):
                try:
                    return self.root.rmdir()
                except OSError:
                    time.sleep(0.1)


class Cgroup:
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    def inside(self, words):
        """The command that runs these words in the group."""
        return ["sh", "-c", 'echo 0 >"$0" && exec "$@"', str(self.folder / "cgroup.procs"), *map(str, words)]

    def started(self, pid):
        pass

    def take(self, pid):
        """This process and all below it."""
        # Those that were born while we moved the others are seen in the next round.
        for _ in range(3):
            for one in below(pid):
                try:
                    (self.folder / "cgroup.procs").write_text(str(one))
                except OSError:
                    pass  # It has ended.

    def pids(self):
        return [int(pid) for pid in (self.folder / "cgroup.procs").read_text().split()]

    def cpu(self):
        return int((self.folder / "cpu.stat").read_text().split()[1]) / 1e6

    def remove(self):
        for _ in range(50):
            try:
                return self.folder.rmdir()
            except OSError:
                time.sleep(0.1)


class Tree:
    """A process and those below it, without those that are groups of their own."""

    def __init__(self, groups, pid):
        self.groups = groups
        self.pid, self.gone = None, 0.0
        self.started(pid)

    def inside(self, words):
        return list(map(str, words))

    def started(self, pid):
        self.pid = pid
        if pid:
            self.groups.others.add(pid)

    def ended(self, rusage):
        """What it and everything that it waited for used, from the kernel."""
        self.groups.others.discard(self.pid)
        self.pid, self.gone = None, self.gone + rusage.ru_utime + rusage.ru_stime

    def pids(self):
        return below(self.pid, self.groups.others - {self.pid}) if self.pid else []

    def cpu(self):
        known = processes()
        return self.gone + sum(known[pid][1] for pid in self.pids() if pid in known)

    def remove(self):
        pass


def below(pid, without=()):
    known = processes()
    children = {}
    for child, (parent, _) in known.items():
        children.setdefault(parent, []).append(child)
    found, left = [], [pid]
    while left:
        one = left.pop()
        if one in known and one not in without:
            found.append(one)
            left += children.get(one, [])
    return found


class Meter:
    """Around a piece of work: `wall` and `cpu` in seconds, `peak` and `before` (the level at the start) in bytes.

    `groups` are those whose CPU counts; `tool` says whose memory counts.
    """

    def __init__(self, groups, tool):
        self.groups, self.tool = groups, tool

    def __enter__(self):
        self.peak = self.before = self.anon()
        self.over = threading.Event()
        self.looking = threading.Thread(target=self.look, daemon=True)
        self.used, self.start = self.used_so_far(), time.monotonic()
        self.looking.start()
        return self

    def used_so_far(self):
        return sum(group.cpu() for group in self.groups)

    def anon(self):
        return sum(map(rss_anon, self.tool()))

    def look(self):
        pause = LOOK_EVERY
        while not self.over.wait(pause):
            begun = time.monotonic()
            self.peak = max(self.peak, self.anon())
            # Looking must not become the work: a tenth of a core at most.
            pause = max(LOOK_EVERY, 10 * (time.monotonic() - begun))

    def split(self):
        """Wall and CPU so far."""
        return time.monotonic() - self.start, self.used_so_far() - self.used

    def __exit__(self, *_):
        self.wall, self.cpu = self.split()
        self.over.set()
        self.looking.join()


def run(group, words, **how):
    """Runs a program in a group until it and its children have ended. Returns its exit code and output."""
    child = subprocess.Popen(group.inside(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, **how)
    group.started(child.pid)
    said = child.stdout.read()
    _, status, rusage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stdout.close()
    if isinstance(group, Tree):
        group.ended(rusage)
    return child.returncode, said
