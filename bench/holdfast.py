"""A site of its own for a benchmark: starts a given `holdfast`, calls its API, loads servers."""

import glob
import json
import math
import os
import pathlib
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
# No step of a benchmark takes longer, in seconds.
LIMIT = 3600
# What an agent says of its stores in the log, at most twice a minute.
REQUESTS = "requests to a store so far"
KINDS = ("puts", "gets", "heads", "lists", "deletes")


def program(name):
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))[::-1]), None)
    return found or sys.exit(f"{name} is missing: install postgresql and postgresql-contrib")


def percentile(values, share):
    return sorted(values)[math.ceil(len(values) * share) - 1]


def bytes_below(folder, without=()):
    total = 0
    for path, folders, names in os.walk(folder):
        folders[:] = set(folders) - set(without)
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:
                pass  # Deleted meanwhile.
    return total


class Site:
    def __init__(self, binary, state):
        self.binary, self.state = binary, state

    def run(self, *words):
        done = subprocess.run(
            [self.binary, *words, "--state-dir", self.state], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=LIMIT)
        if done.returncode:
            sys.exit(f"holdfast {' '.join(words)}: exit {done.returncode}")
        return done.stdout

    def up(self, inside=lambda words: words):
        """Seconds until it answered. `inside` may put another command around this one."""
        # Not through a pipe: the detached site would keep it open.
        start = time.monotonic()
        done = subprocess.run(
            inside([self.binary, "up", "--detach", "--listen", "127.0.0.1:0", "--state-dir", self.state]),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=LIMIT,
            env=os.environ | {"RUST_LOG": "info"})
        if done.returncode:
            sys.exit(f"holdfast up: exit {done.returncode}")
        took = time.monotonic() - start
        self.facts = json.loads(self.run("status", "-o", "json"))
        tls = ssl.create_default_context(cafile=self.facts["ca_file"])
        # It is this machine's own address: no proxy.
        self.web = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
        return took

    def server(self, name):
        return (f"/subscriptions/{self.facts['subscription']}/resourceGroups/{self.facts['resource_group']}"
                f"/providers/Microsoft.DBforPostgreSQL/flexibleServers/{name}")

    def call(self, method, path, body=None, version="2026-10-01", again=True):
        url = path if path.startswith("http") else f"{self.facts['url']}{path}?api-version={version}"
        data = json.dumps(body).encode() if body is not None else (b"" if method in ("PUT", "POST") else None)
        request = urllib.request.Request(url, data=data, method=method)
        request.add_header("Authorization", "Bearer " + self.facts["token"])
        if body is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with self.web.open(request, timeout=60) as answer:
                text = answer.read()
                return answer.headers, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            if error.code == 401 and again:
                # A long run outlives a token.
                self.facts["token"] = json.loads(self.run("status", "-o", "json"))["token"]
                return self.call(method, path, body, version, again=False)
            sys.exit(f"{method} {path}: {error.code} {error.read().decode()}")

    def finish(self, headers, every=0.1):
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            _, operation = self.call("GET", headers["Azure-AsyncOperation"])
            if operation["status"] in ("Succeeded", "Failed", "Canceled"):
                if operation["status"] != "Succeeded":
                    sys.exit(json.dumps(operation, indent=2))
                return operation
            time.sleep(every)
        sys.exit(f"not within {LIMIT} s: {operation}")

    def do(self, method, path, body=None):
        return self.finish(self.call(method, path, body)[0])

    def ask_for(self, name, gigabytes=32):
        """Of a new server, what `finish` wants."""
        return self.call("PUT", self.server(name), {
            "location": "eastus2", "sku": {"name": "Standard_D2s_v3", "tier": "GeneralPurpose"},
            "properties": {"createMode": "Create", "administratorLogin": "bench",
                           "administratorLoginPassword": "Quite-Secret-1",
                           "storage": {"storageSizeGB": gigabytes}}})[0]

    def create(self, name):
        """Until it is Ready. Its first backup follows by itself: see `backed_up`."""
        self.finish(self.ask_for(name))

    def backed_up(self, name):
        """Waits until a backup of the server is listed."""
        end = time.monotonic() + LIMIT
        while not self.call("GET", self.server(name) + "/backups")[1]["value"]:
            if time.monotonic() > end:
                sys.exit(f"no first backup of {name}")
            time.sleep(0.1)

    def restore_of(self, name):
        """The body that makes a new server of the newest state of this one."""
        return {"location": "eastus2", "properties": {
            "createMode": "PointInTimeRestore", "sourceServerResourceId": self.server(name)}}

    def age(self, name):
        path = self.server(name) + "/providers/Holdfast.Recovery/restorePoints"
        return self.call("GET", path, version="2026-11-01")[1]["properties"]["recoveryPointAgeSeconds"]

    def ages(self, name, goes_on, every):
        """How old the newest restorable instant was, asked again and again while `goes_on`."""
        found = []
        while goes_on():
            found.append(self.age(name))
            time.sleep(every)
        return found

    def uri(self, name):
        return self.run("server", "connection-string", name).strip()

    def stored(self, without=()):
        """Bytes in all stores, without folders of these names: `wal` comes when it comes."""
        return bytes_below(pathlib.Path(self.state, "vaults"), without)

    def requests(self):
        """Requests to all stores so far, by kind: of each node and store the last that was said."""
        last = {}
        with open(self.log()) as log:
            for line in log:
                if REQUESTS in line:
                    said = json.loads(line)
                    last[said["node.name"], said["store.url"]] = said
        return {kind: sum(said[f"store.{kind}"] for said in last.values()) for kind in KINDS}

    def log(self):
        return pathlib.Path(self.state, "log", "site.log")

    def quiet(self, seconds=60, at_most=600):
        """Waits until so long no object was put: autovacuum after a load is not idleness."""
        known, since, limit = self.requests()["puts"], time.monotonic(), time.monotonic() + at_most
        while time.monotonic() - since < seconds and time.monotonic() < limit:
            time.sleep(1)
            if (now := self.requests()["puts"]) != known:
                known, since = now, time.monotonic()

    def destroy(self):
        subprocess.run([self.binary, "destroy", "--yes", "--state-dir", self.state],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Log:
    """What the site says from here on. Following it costs the site nothing, other than polling its API."""

    def __init__(self, site):
        self.file, self.rest = open(site.log()), ""
        self.file.seek(0, os.SEEK_END)

    def lines(self):
        self.rest += self.file.read()
        *whole, self.rest = self.rest.split("\n")
        return whole

    def wait(self, message, kind):
        """The next such word about a job of this kind."""
        return self.wait_for([message], kind)

    def wait_for(self, messages, kind):
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            whole = self.lines()
            for number, line in enumerate(whole):
                said = json.loads(line) if line.startswith("{") else {}
                if said.get("span", {}).get("job.kind") != kind:
                    continue
                if said.get("message") == "job failed":
                    sys.exit(line)
                if said.get("message") in messages:
                    self.rest = "\n".join([*whole[number + 1:], self.rest])
                    return said
            time.sleep(0.01)
        sys.exit(f"the site did not say {messages} of a {kind} within {LIMIT} s")
