// @azure/arm-postgresql-flexible with @azure/identity, unmodified: create, back up, restore.
//
// Sections as in ../python/sections.py: each works, or its name is in ../NOT_YET. NODE_EXTRA_CA_CERTS names the site's CA.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { PostgreSQLManagementFlexibleServerClient } from "@azure/arm-postgresql-flexible";
import { ClientSecretCredential } from "@azure/identity";

const env = process.env;
const [url, subscription, group] = [env.HOLDFAST_URL, env.HOLDFAST_SUBSCRIPTION, env.HOLDFAST_RESOURCE_GROUP];
const [location, name, copy] = ["eastus2", "sdk-js", "sdk-js-copy"];
const id = (server) =>
  `/subscriptions/${subscription}/resourceGroups/${group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/${server}`;

const notYet = new Set(
  readFileSync(new URL("../NOT_YET", import.meta.url), "utf8").split("\n").filter((line) => line && !line.startsWith("#")),
);

function holdfast(...words) {
  return execFileSync(env.HOLDFAST_BINARY, [...words, "--state-dir", env.HOLDFAST_STATE_DIR], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"],
  });
}

function sql(server, statement) {
  const uri = holdfast("server", "connection-string", server).trim();
  return execFileSync("psql", [uri, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement], { encoding: "utf8" }).trim();
}

/** Both the token that `holdfast status` printed, and later what a service principal gets for its secret. */
function credential() {
  if (notYet.has("service principal")) {
    const given = { token: env.HOLDFAST_TOKEN, expiresOnTimestamp: Date.now() + 3_600_000 };
    return { getToken: async () => given };
  }
  const said = JSON.parse(
    holdfast("principal", "create", "js-client", "--role", "Contributor", "--scope", `/subscriptions/${subscription}`, "-o", "json"),
  );
  return new ClientSecretCredential(said.tenant, said.client_id, said.client_secret, {
    authorityHost: url,
    disableInstanceDiscovery: true,
  });
}

const client = new PostgreSQLManagementFlexibleServerClient(credential(), subscription, {
  endpoint: url,
  credentialScopes: [`${url}/.default`],
});
const { servers, backupsAutomaticAndOnDemand: backups } = client;

async function refused(status, code, ask) {
  await assert.rejects(ask, (error) => {
    assert.deepEqual([error.statusCode, error.code], [status, code], `${error}`);
    return true;
  });
}

async function all(pages) {
  const found = [];
  for await (const item of pages) found.push(item);
  return found;
}

const sections = {
  async create() {
    await refused(404, "ResourceNotFound", () => servers.get(group, name));
    const server = await servers.beginCreateOrUpdateAndWait(group, name, {
      location,
      sku: { name: "Standard_D2s_v3", tier: "GeneralPurpose" },
      administratorLogin: "hfadmin",
      administratorLoginPassword: "Quite-Secret-1",
      version: env.HOLDFAST_VERSION,
      storage: { storageSizeGB: 32 },
      createMode: "Create",
    });
    assert.deepEqual([server.id, server.state, server.version], [id(name), "Ready", env.HOLDFAST_VERSION]);
    assert.equal(server.backup.backupRetentionDays, 7);
    assert.ok((await all(servers.listByResourceGroup(group))).some((found) => found.id === id(name)));
  },
  async backup() {
    sql(name, "CREATE TABLE story (chapter int); INSERT INTO story SELECT generate_series(1, 10)");
    const backup = await backups.beginCreateAndWait(group, name, "by-hand");
    assert.deepEqual([backup.name, backup.backupType, backup.source], ["by-hand", "Customer On-Demand", "Customer Initiated"]);
    assert.ok(backup.completedTime instanceof Date);
    assert.ok((await all(backups.listByServer(group, name))).some((found) => found.name === "by-hand"));
    await refused(409, "BackupAlreadyExists", () => backups.beginCreateAndWait(group, name, "by-hand"));
    sql(name, "INSERT INTO story SELECT generate_series(11, 20)");
  },
  async restore() {
    // A Date has milliseconds: the backup's time comes back cut, and still means that backup.
    const { completedTime } = await backups.get(group, name, "by-hand");
    const wish = { location, createMode: "PointInTimeRestore", sourceServerResourceId: id(name) };
    const restored = await servers.beginCreateOrUpdateAndWait(group, copy, { ...wish, pointInTimeUTC: completedTime });
    assert.deepEqual([restored.id, restored.state, restored.administratorLogin], [id(copy), "Ready", "hfadmin"]);
    assert.equal(sql(copy, "SELECT count(*), max(chapter) FROM story"), "10|10");
    const later = new Date(Date.now() + 3_600_000);
    await refused(400, "InvalidParameterValue", () =>
      servers.beginCreateOrUpdateAndWait(group, `${copy}-2`, { ...wish, pointInTimeUTC: later }));
  },
  async "delete"() {
    await backups.beginDeleteAndWait(group, name, "by-hand");
    await servers.beginStopAndWait(group, copy);
    assert.equal((await servers.get(group, copy)).state, "Stopped");
    for (const server of [copy, name]) {
      await servers.beginDeleteAndWait(group, server);
      await refused(404, "ResourceNotFound", () => servers.get(group, server));
    }
  },
};

for (const [section, work] of Object.entries(sections)) {
  const start = Date.now();
  const say = (what) => console.log(`section ${section}: ${what} (${((Date.now() - start) / 1000).toFixed(1)} s)`);
  try {
    await work();
  } catch (error) {
    console.log(error);
    say("FAILED");
    process.exit(1);
  }
  say("works");
}
