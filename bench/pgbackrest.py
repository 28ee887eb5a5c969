"""pgBackRest at its best settings for two cores, beside Holdfast on the same cluster.

It wants its own archive_command before it makes a backup. Here Holdfast streams the log, so that check is
off (archive-check=n): pgBackRest is spared the wait for its log, which Holdfast's figures include. What it
stores could only be started with log from elsewhere; nobody starts it here, its files are restored and counted.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

from holdfast import LIMIT, bytes_below

BLOCK_SINCE = (2, 46)
BUNDLE_SINCE = (2, 39)
# It refuses to run as root unless it is told to.
ROOT_ASKED_SINCE = (2, 59)


def install():
    """The program's path: PGBACKREST, or the distribution's, installed when it is missing."""
    given = os.environ.get("PGBACKREST")
    if given:
        return given if os.access(given, os.X_OK) else sys.exit(f"PGBACKREST={given} cannot be run")
    if not shutil.which("pgbackrest"):
        root = [] if os.geteuid() == 0 else ["sudo"]
        if not shutil.which("apt-get") or (root and not shutil.which("sudo")):
            sys.exit("pgbackrest is missing: install it, or say where it is with PGBACKREST=")
        apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
        print("installing pgbackrest …", file=sys.stderr)
        for words in (["update"], ["install", "-y", "--no-install-recommends", "pgbackrest"]):
            done = subprocess.run([*apt, *words], capture_output=True, text=True, timeout=LIMIT)
            if done.returncode:
                sys.exit(f"apt-get {words[0]}: exit {done.returncode}\n{done.stderr}")
    return shutil.which("pgbackrest") or sys.exit("pgbackrest was installed and is not in PATH")


class PgBackRest:
    def __init__(self, folder):
        self.program, self.folder = install(), pathlib.Path(folder)
        said = subprocess.run([self.program, "version"], capture_output=True, text=True, timeout=60).stdout
        found = re.search(r"(\d+)\.(\d+)", said) or sys.exit(f"{self.program} version: {said}")
        self.version = tuple(map(int, found.groups()))
        self.blocks = self.version >= BLOCK_SINCE
        for name in ("lock", "log", "spool", "repo"):
            (self.folder / name).mkdir(parents=True)
        self.sections = {
            "global": {
                "repo1-path": self.folder / "repo", "repo1-cipher-type": "aes-256-cbc",
                "repo1-cipher-pass": "measured-not-kept", "repo1-retention-full": 1, "repo1-retention-archive": 9999999,
                "process-max": 2, "compress-type": "zst", "compress-level": 1, "start-fast": "y",
                "lock-path": self.folder / "lock", "log-path": self.folder / "log", "spool-path": self.folder / "spool",
                "log-level-file": "off", "log-level-console": "warn", "log-level-stderr": "off"},
            # Holdfast streams the log: see above. What is expired is not part of a backup's time.
            "global:backup": {"archive-check": "n", "expire-auto": "n"},
        }
        if self.version >= BUNDLE_SINCE:
            self.sections["global"]["repo1-bundle"] = "y"
        if self.version >= ROOT_ASKED_SINCE and os.geteuid() == 0:
            self.sections["global"]["allow-root"] = "y"
        if self.blocks:
            self.sections["global"]["repo1-block"] = "y"

    def name(self):
        return "pgBackRest " + ".".join(map(str, self.version))

    def stanza(self, name, data, socket, port, user):
        self.sections[name] = {"pg1-path": data, "pg1-socket-path": socket, "pg1-port": port, "pg1-user": user}
        self.check(self.words(name, "stanza-create"))

    def archive(self, name, data):
        """A stanza for a directory that is no running server."""
        self.sections[name] = {"pg1-path": data}
        self.check(self.words(name, "stanza-create", "--no-online"))

    def words(self, stanza, command, *options):
        config = self.folder / "pgbackrest.conf"
        config.write_text("".join(
            f"[{section}]\n" + "".join(f"{key}={value}\n" for key, value in entries.items())
            for section, entries in self.sections.items()))
        return [self.program, f"--config={config}", f"--stanza={stanza}", command, *map(str, options)]

    @staticmethod
    def check(words):
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT)
        if done.returncode:
            sys.exit(f"{' '.join(words[:1] + words[3:])}: exit {done.returncode}\n{done.stdout}{done.stderr}")

    def expire(self, stanza):
        self.check(self.words(stanza, "expire"))

    def stored(self):
        return bytes_below(self.folder / "repo")
