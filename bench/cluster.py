"""One managed server of a benchmark's site, its data, and what can be asked of it as superuser."""

import os
import pathlib
import struct
import subprocess
import sys
import urllib.parse

from holdfast import LIMIT, program

# Data set B at scale 100.
NOISE_BYTES = 1_300_000_000
ROW_BYTES, ROWS_IN_PAGE = 1000, 7
PAGE = 8192
# Every fiftieth page is changed: 2 %.
STRIDE = 50


class Cluster:
    """`user` is the role of Holdfast's agent: this user's by peer authentication, a superuser."""

    USER = "holdfast"

    def __init__(self, site, name, table):
        self.site, self.name, self.table = site, name, table
        self.psql, self.pgbench = program("psql"), program("pgbench")
        site.create(name)
        site.backed_up(name)
        uri = urllib.parse.urlsplit(site.uri(name))
        host, _, self.port = uri.netloc.rpartition("@")[2].rpartition(":")
        self.socket = urllib.parse.unquote(host)
        self.uri = f"postgresql://{self.USER}@{host}:{self.port}/postgres"
        self.data = self.ask("SHOW data_directory")
        self.major = int(self.ask("SHOW server_version_num")) // 10000

    def ask(self, *statements):
        words = [word for statement in statements for word in ("-c", statement)]
        done = subprocess.run([self.psql, self.uri, "-XAtq", "-v", "ON_ERROR_STOP=1", *words], text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT)
        if done.returncode:
            sys.exit(f"{statements}: {done.stderr}")
        return done.stdout.strip()

    def session(self):
        return Session([self.psql, self.uri, "-XAtq", "-v", "ON_ERROR_STOP=1"])

    def postmaster(self):
        return int(pathlib.Path(self.data, "postmaster.pid").read_text().split("\n")[0])

    def bench(self, *words, check=True):
        done = subprocess.run([self.pgbench, *words, self.uri], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True, timeout=LIMIT)
        if check and done.returncode:
            sys.exit(f"pgbench {' '.join(words)}: {done.stderr}")

    def load_pgbench(self, scale):
        self.bench("-i", "-q", "-s", str(scale))
        self.settle()

    def load_noise(self, scale):
        """Rows that nothing compresses, with a primary key."""
        self.ask("CREATE TABLE noise (id bigint, filler bytea)")
        into = subprocess.Popen([self.psql, self.uri, "-Xq", "-c", "COPY noise FROM STDIN (FORMAT binary)"],
                                stdin=subprocess.PIPE)
        into.stdin.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        for number in range(int(NOISE_BYTES * scale / 100) // PAGE * ROWS_IN_PAGE):
            into.stdin.write(struct.pack(">hiqi", 2, 8, number, ROW_BYTES) + os.urandom(ROW_BYTES))
        into.stdin.write(struct.pack(">h", -1))
        into.stdin.close()
        if into.wait(LIMIT):
            sys.exit("the noise was not taken")
        self.ask("ALTER TABLE noise ADD PRIMARY KEY (id)")
        self.settle()

    def settle(self):
        """Nothing of the load is left to do when something is measured."""
        self.ask(f"ALTER TABLE {self.table} SET (autovacuum_enabled = off)")
        self.ask("VACUUM (FREEZE, ANALYZE)")
        self.checkpoint()

    def checkpoint(self):
        self.ask("CHECKPOINT")

    def bytes(self):
        return int(self.ask("SELECT sum(pg_database_size(oid)) FROM pg_database"))

    def lsn(self):
        return self.ask("SELECT pg_current_wal_flush_lsn()")

    def change(self, turn):
        """Changes a row in every fiftieth page of the table, other pages each turn; returns raw bytes of all
        pages that are different now, indexes' too."""
        before = number_of(self.lsn())
        column = "abalance" if self.table == "pgbench_accounts" else "id"
        self.ask(f"""UPDATE {self.table} SET {column} = {column} WHERE ctid = ANY (ARRAY(
            SELECT format('(%s,1)', page)::tid
              FROM generate_series({turn % STRIDE}, pg_relation_size('{self.table}') / {PAGE} - 1, {STRIDE}) page))""")
        self.checkpoint()
        return sum(pages_since(path, before) for path in pathlib.Path(self.data, "base").rglob("*")
                   if path.name.partition(".")[0].isdigit() and path.is_file()) * PAGE


class Session:
    """One connection for many questions: a process for each would be measured, too."""

    END = "--end--"

    def __init__(self, words):
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, statement):
        self.process.stdin.write(f"{statement};\nSELECT '{self.END}';\n")
        self.process.stdin.flush()
        said = []
        while (line := self.process.stdout.readline().rstrip("\n")) != self.END:
            if self.process.poll() is not None and not line:
                sys.exit(f"psql ended at: {statement}")
            said.append(line)
        return "\n".join(said)

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def number_of(lsn):
    high, _, low = lsn.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def pages_since(path, lsn):
    """Pages whose header names a later position of the log. Maps of free space carry none."""
    found = 0
    with open(path, "rb", buffering=PAGE * 512) as file:
        while block := file.read(PAGE * 512):
            for high, low in (struct.unpack_from("=II", block, at) for at in range(0, len(block) - 7, PAGE)):
                found += (high << 32 | low) > lsn
    return found
