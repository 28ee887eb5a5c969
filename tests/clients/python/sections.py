"""What every Python client here starts from: the site's facts, who calls, rows, and sections.

A program is a list of sections. Each either works, or its name is in `NOT_YET`; the test that runs the programs reads
what each section said. Run with the site's facts in the environment; REQUESTS_CA_BUNDLE names its CA.
"""

import os
import pathlib
import subprocess
import sys
import time
import traceback

from azure.core.credentials import AccessToken, AccessTokenInfo
from azure.core.exceptions import HttpResponseError

URL = os.environ["HOLDFAST_URL"]
SUBSCRIPTION = os.environ["HOLDFAST_SUBSCRIPTION"]
GROUP = os.environ["HOLDFAST_RESOURCE_GROUP"]
TENANT = os.environ["HOLDFAST_TENANT"]
VERSION = os.environ["HOLDFAST_VERSION"]
LOCATION, DISPLAY_LOCATION = "eastus2", "East US 2"
PASSWORD = "Quite-Secret-1"
PROVIDER = "Microsoft.DBforPostgreSQL"
# Nothing here takes longer, in seconds.
LIMIT = 240

NOT_YET = {line for line in pathlib.Path(__file__).with_name("..").joinpath("NOT_YET").read_text().splitlines()
           if line and not line.startswith("#")}
# What is not there at all, and what is there and says that it does not do that.
NOT_OFFERED = {(404, "OperationNotSupported"), (405, "HttpMethodNotAllowed"), (400, "NotSupported")}


class GivenToken:
    """The token that `holdfast status` printed."""

    def get_token(self, *scopes, **kwargs):
        return AccessToken(os.environ["HOLDFAST_TOKEN"], int(time.time()) + 3600)

    def get_token_info(self, *scopes, **kwargs):
        return AccessTokenInfo(os.environ["HOLDFAST_TOKEN"], int(time.time()) + 3600)


def given(client, *arguments, credential=None, **keywords):
    """A client as its documentation says, with our address."""
    return client(credential or GivenToken(), *arguments, base_url=URL, credential_scopes=[URL + "/.default"], **keywords)


def server_id(name):
    return f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/{PROVIDER}/flexibleServers/{name}"


def holdfast(*words):
    done = subprocess.run([os.environ["HOLDFAST_BINARY"], *words, "--state-dir", os.environ["HOLDFAST_STATE_DIR"]],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise CommandFailed(done.returncode, done.stderr)
    return done.stdout


class CommandFailed(Exception):
    """Of `holdfast`; 2 is what the command line's reader says of a word that it does not know."""


def sql(server, statement):
    """The rows as psql prints them without decoration, as the administrator of the server."""
    uri = holdfast("server", "connection-string", server).strip()
    done = subprocess.run(["psql", uri, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, f"{statement}: {done.stderr}"
    return done.stdout.strip()


def until(what, ask):
    """Asks until there is an answer."""
    end = time.monotonic() + LIMIT
    while not (found := ask()):
        assert time.monotonic() < end, f"{what}: not within {LIMIT} s"
        time.sleep(0.2)
    return found


def refused(status, code, ask):
    """The refusal of a call that has to end with this status and code. `code` may be several."""
    codes = {code} if isinstance(code, str) else set(code)
    try:
        result = ask()
        # An operation can be accepted and fail.
        if hasattr(result, "result"):
            result = result.result()
        elif not hasattr(result, "name") and hasattr(result, "__iter__"):
            result = list(result)
    except HttpResponseError as error:
        said = error.error.code if error.error else None
        assert error.status_code == status and said in codes, f"{error.status_code} {said}, not {status} {codes}: {error}"
        assert error.error.message, "a refusal without a message"
        return error
    raise AssertionError(f"not refused with {status} {codes}: {result}")


SECTIONS = []


def section(name, vital=False, there=True):
    """The rest of a program makes no sense without a vital section. Some clients lack a call."""

    def add(function):
        if there:
            SECTIONS.append((name, vital, function))
        return function

    return add


def not_offered(error):
    if isinstance(error, HttpResponseError):
        return (error.status_code, error.error.code if error.error else None) in NOT_OFFERED
    return isinstance(error, CommandFailed) and error.args[0] == 2


def run(context):
    """Prints `section NAME: works` or `not yet`, or a complaint; the exit code says whether there was one."""
    complaints = 0
    for name, vital, function in SECTIONS:
        start, said = time.monotonic(), "works"
        try:
            function(context)
            if name in NOT_YET:
                complaints, said = complaints + 1, "works: take it out of tests/clients/NOT_YET"
        except Exception as error:
            if name in NOT_YET and not_offered(error):
                said = "not yet"
            else:
                complaints, said = complaints + 1, "FAILED"
                traceback.print_exc(file=sys.stdout)
        print(f"section {name}: {said} ({time.monotonic() - start:.1f} s)", flush=True)
        if said == "FAILED" and vital:
            break
    sys.exit(1 if complaints else 0)
