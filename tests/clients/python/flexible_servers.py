"""azure-mgmt-postgresqlflexibleservers, unmodified: every call that its users make (FLX-150).

One program for 3.0.0, 2.0.0 and 1.1.0: attributes of models are the same in all, `dialect` has what is named otherwise.
Each version works on servers of its own, so that they can share a site, and restores in another of the three ways.
"""

import datetime
from importlib.metadata import version

from azure.core.exceptions import ResourceNotFoundError
from azure.mgmt.postgresqlflexibleservers import PostgreSQLManagementClient

from dialect import Dialect
from sections import (DISPLAY_LOCATION, GROUP, LOCATION, PASSWORD, PROVIDER, SUBSCRIPTION, VERSION, given, refused, run,
                      section, server_id, sql, until)

SDK = version("azure-mgmt-postgresqlflexibleservers")
UTC = datetime.timezone.utc
SERVER_TYPE = f"{PROVIDER}/flexibleServers"


class Context:
    def __init__(self):
        self.sdk = SDK
        self.client = given(PostgreSQLManagementClient, SUBSCRIPTION)
        self.dialect = Dialect(self.sdk, self.client)
        self.models = self.dialect.models
        self.name = "sdk-" + self.sdk.replace(".", "")
        self.copy = self.name + "-copy"
        self.backups = self.dialect.backups

    def wish(self, **changed):
        wish = {
            "location": LOCATION,
            "sku": self.models.Sku(name="Standard_D2s_v3", tier="GeneralPurpose"),
            "tags": {"env": "test", "Owner": "A b"},
            "administrator_login": "hfadmin",
            "administrator_login_password": PASSWORD,
            "version": VERSION,
            "storage": self.models.Storage(storage_size_gb=32),
            "create_mode": "Create",
        } | changed
        return self.models.Server(**{key: value for key, value in wish.items() if value is not None})

    def restore(self, mode, **given):
        return self.models.Server(location=given.pop("location", LOCATION), create_mode=mode,
                                  source_server_resource_id=server_id(self.name), **given)

    def create(self, wish, name=None, group=GROUP):
        return self.dialect.create(group, name or self.name, wish)

    def change(self, **changes):
        return self.client.servers.begin_update(GROUP, self.name, self.dialect.patch(**changes))

    def get(self, name=None):
        return self.client.servers.get(GROUP, name or self.name)


@section("operations")
def operations(c):
    found = {operation.name: operation for operation in c.dialect.operations()}
    write = found[f"{SERVER_TYPE}/write"]
    assert write.display.provider and write.display.operation, write
    assert f"{SERVER_TYPE}/backups/write" in found, sorted(found)


@section("name availability")
def name_availability(c):
    question = c.models.CheckNameAvailabilityRequest(name=c.name, type=SERVER_TYPE)
    for answer in (c.dialect.check_name(question), c.dialect.check_name_in(LOCATION, question)):
        assert answer.name_available is True and not answer.reason, answer
    bad = c.models.CheckNameAvailabilityRequest(name="no--good-", type=SERVER_TYPE)
    answer = c.dialect.check_name(bad)
    assert answer.name_available is False and answer.reason == "Invalid" and answer.message, answer


@section("what is not there")
def what_is_not_there(c):
    refused(404, "ResourceNotFound", c.get)
    refused(404, "ResourceNotFound", lambda: c.backups.list_by_server(GROUP, c.name))
    refused(404, "ResourceNotFound", lambda: c.change(tags={"a": "b"}))
    refused(404, "ResourceNotFound", lambda: c.client.servers.begin_stop(GROUP, c.name))
    refused(404, "ResourceGroupNotFound", lambda: c.create(c.wish(), group="no-such-group"))
    try:
        c.get()
    except ResourceNotFoundError:
        pass  # The class that users catch.
    # Deleting what is not there is done already.
    c.client.servers.begin_delete(GROUP, c.name).result()


@section("refused wishes")
def refused_wishes(c):
    for days in (6, 36):
        refused(400, "InvalidParameterValue", lambda: c.create(c.wish(backup=c.models.Backup(backup_retention_days=days))))
    refused(400, "InvalidParameterValue", lambda: c.create(c.wish(version="9")))
    refused(400, "InvalidParameterValue", lambda: c.create(c.wish(administrator_login="postgres")))
    refused(400, "LocationNotAvailableForResourceType", lambda: c.create(c.wish(location="nowhere")))
    refused(404, "ResourceNotFound", c.get)


@section("create", vital=True)
def create(c):
    server = c.create(c.wish()).result()
    assert server.id == server_id(c.name) and server.name == c.name and server.type == SERVER_TYPE, server
    assert server.state == "Ready", server.state
    assert server.location == DISPLAY_LOCATION and server.tags == {"env": "test", "Owner": "A b"}, server
    assert server.sku.name == "Standard_D2s_v3" and server.sku.tier == "GeneralPurpose", server.sku
    assert server.administrator_login == "hfadmin" and server.version == VERSION, server
    assert server.minor_version, server
    assert server.storage.storage_size_gb == 32 and server.storage.auto_grow == "Disabled", server.storage
    assert server.backup.backup_retention_days == 7 and server.backup.geo_redundant_backup == "Disabled", server.backup
    assert server.network.public_network_access == "Enabled", server.network
    assert server.high_availability.mode == "Disabled" and server.high_availability.state == "NotEnabled", server
    assert server.maintenance_window.custom_window == "Disabled", server.maintenance_window
    assert server.auth_config.password_auth == "Enabled" and server.auth_config.active_directory_auth == "Disabled"
    assert server.replication_role == "Primary", server.replication_role
    assert server.fully_qualified_domain_name.startswith(c.name + "."), server.fully_qualified_domain_name
    assert abs(server.system_data.created_at - datetime.datetime.now(UTC)) < datetime.timedelta(minutes=10), server.system_data
    # Never returned.
    assert not server.administrator_login_password and not server.create_mode and not server.source_server_resource_id
    refused(409, "ServerNameAlreadyExists", lambda: c.create(c.wish()))
    question = c.models.CheckNameAvailabilityRequest(name=c.name, type=SERVER_TYPE)
    answer = c.dialect.check_name(question)
    assert answer.name_available is False and answer.reason == "AlreadyExists", answer


@section("read")
def read(c):
    assert c.get(c.name.upper()).name == c.name, "names have no case"
    for servers in (c.client.servers.list_by_resource_group(GROUP), c.dialect.list_servers()):
        assert server_id(c.name) in {server.id for server in servers}
    assert list(c.client.replicas.list_by_server(GROUP, c.name)) == []


@section("first backup", vital=True)
def first_backup(c):
    backup = until("the first backup", lambda: next(iter(c.backups.list_by_server(GROUP, c.name)), None))
    assert backup.backup_type == "Full" and backup.source == "Automatic", backup
    assert backup.id == f"{server_id(c.name)}/backups/{backup.name}" and backup.type == f"{SERVER_TYPE}/backups", backup
    same = c.backups.get(GROUP, c.name, backup.name)
    assert (same.name, same.completed_time) == (backup.name, backup.completed_time), same
    earliest = c.get().backup.earliest_restore_date
    assert abs(earliest - backup.completed_time) < datetime.timedelta(seconds=1), (earliest, backup.completed_time)
    refused(404, "ResourceNotFound", lambda: c.backups.get(GROUP, c.name, "no-such-backup"))
    refused(400, "AutomaticBackupCannotBeDeleted", lambda: c.backups.begin_delete(GROUP, c.name, backup.name))


@section("on-demand backup", vital=True)
def on_demand_backup(c):
    sql(c.name, "CREATE TABLE story (chapter int PRIMARY KEY); INSERT INTO story SELECT generate_series(1, 100)")
    backup = c.backups.begin_create(GROUP, c.name, "by-hand").result()
    assert backup.name == "by-hand" and backup.source == "Customer Initiated", backup
    assert backup.backup_type == "Customer On-Demand", backup
    c.by_hand = c.backups.get(GROUP, c.name, "by-hand").completed_time
    assert "by-hand" in {found.name for found in c.backups.list_by_server(GROUP, c.name)}
    refused(409, "BackupAlreadyExists", lambda: c.backups.begin_create(GROUP, c.name, "by-hand"))
    c.backups.begin_delete(GROUP, c.name, "never-there").result()
    sql(c.name, "INSERT INTO story SELECT generate_series(101, 150)")
    now = sql(c.name, """SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US')""")
    c.between = datetime.datetime.fromisoformat(now).replace(tzinfo=UTC)
    sql(c.name, "SELECT pg_sleep(0.01); INSERT INTO story SELECT generate_series(151, 200)")


@section("update")
def update(c):
    server = c.change(backup=c.dialect.backup_patch(backup_retention_days=14)).result()
    assert server.backup.backup_retention_days == 14, server.backup
    assert server.tags == {"env": "test", "Owner": "A b"}, "untouched"
    server = c.change(tags={"only": "this"}).result()
    assert server.tags == {"only": "this"} and server.backup.backup_retention_days == 14, server
    window = c.dialect.window_patch(custom_window="Enabled", day_of_week=3, start_hour=4, start_minute=30)
    server = c.change(maintenance_window=window).result()
    shown = server.maintenance_window
    assert (shown.custom_window, shown.day_of_week, shown.start_hour, shown.start_minute) == ("Enabled", 3, 4, 30), shown
    server = c.change(storage=c.models.Storage(storage_size_gb=64)).result()
    assert server.storage.storage_size_gb == 64, server.storage
    for wrong in ({"backup": c.dialect.backup_patch(backup_retention_days=36)},
                  {"backup": c.dialect.backup_patch(backup_retention_days=6)},
                  {"storage": c.models.Storage(storage_size_gb=32)}):
        refused(400, "InvalidParameterValue", lambda: c.change(**wrong))
    assert c.get().backup.backup_retention_days == 14


@section("refused restores")
def refused_restores(c):
    now = datetime.datetime.now(UTC)
    for wrong in ({"point_in_time_utc": now + datetime.timedelta(hours=1)},
                  {"point_in_time_utc": now - datetime.timedelta(days=30)},
                  {"point_in_time_utc": now, "location": "westus"}):
        refused(400, "InvalidParameterValue", lambda: c.create(c.restore("PointInTimeRestore", **wrong), c.copy))
    over = c.restore("PointInTimeRestore", point_in_time_utc=now)
    refused(400, "InvalidParameterValue", lambda: c.create(over, c.name))
    # The source keeps no copies elsewhere, whatever the site can do.
    geo = c.restore("GeoRestore", point_in_time_utc=now, location="centralus")
    refused(400, ("NotSupported", "InvalidParameterValue"), lambda: c.create(geo, c.copy))
    refused(400, "NotSupported", lambda: c.create(c.restore("Replica"), c.copy))
    refused(404, "ResourceNotFound", lambda: c.get(c.copy))


@section("restore", vital=True)
def restore(c):
    # To a moment, to a backup (whose time the client cut to microseconds), and to now.
    at, rows = {"3.0.0": (c.between, 150), "2.0.0": (c.by_hand, 100)}.get(c.sdk, (datetime.datetime.now(UTC), 200))
    copy = c.create(c.restore("PointInTimeRestore", point_in_time_utc=at), c.copy).result()
    assert copy.state == "Ready" and copy.id == server_id(c.copy), copy
    assert copy.administrator_login == "hfadmin" and copy.version == VERSION, copy
    source = c.get()
    assert copy.sku.name == source.sku.name and copy.storage.storage_size_gb == source.storage.storage_size_gb, copy
    assert copy.backup.backup_retention_days == source.backup.backup_retention_days, copy.backup
    assert not copy.source_server_resource_id and not copy.create_mode, copy
    assert sql(c.copy, "SELECT count(*), min(chapter), max(chapter) FROM story") == f"{rows}|1|{rows}", at
    assert sql(c.name, "SELECT count(*) FROM story") == "200", "the source is as it was"
    again = c.restore("PointInTimeRestore", point_in_time_utc=at)
    refused(409, "ServerNameAlreadyExists", lambda: c.create(again, c.copy))


@section("power")
def power(c):
    servers = c.client.servers
    servers.begin_stop(GROUP, c.copy).result()
    assert c.get(c.copy).state == "Stopped"
    refused(400, "ServerIsNotReady", lambda: servers.begin_restart(GROUP, c.copy))
    refused(400, "ServerIsNotReady", lambda: c.backups.begin_create(GROUP, c.copy, "asleep"))
    servers.begin_start(GROUP, c.copy).result()
    assert c.get(c.copy).state == "Ready"
    servers.begin_restart(GROUP, c.copy, c.dialect.restart(restart_with_failover=False)).result()
    refused(400, "NotSupported", lambda: servers.begin_restart(GROUP, c.copy, c.dialect.restart(
        restart_with_failover=True, failover_mode="PlannedFailover")))
    assert sql(c.copy, "SELECT pg_postmaster_start_time() > now() - interval '1 minute'") == "t"


@section("delete a backup")
def delete_a_backup(c):
    c.backups.begin_delete(GROUP, c.name, "by-hand").result()
    refused(404, "ResourceNotFound", lambda: c.backups.get(GROUP, c.name, "by-hand"))


@section("capabilities by location")
def capabilities_by_location(c):
    check_capabilities(c, list(c.dialect.capabilities_in(LOCATION)))


@section("capabilities by server")
def capabilities_by_server(c):
    check_capabilities(c, list(c.dialect.capabilities_of(GROUP, c.name)))


def check_capabilities(c, found):
    assert len(found) >= 1 and found[0].name == "FlexibleServerCapabilities", found
    versions = {offered.name for offered in found[0].supported_server_versions}
    assert VERSION in versions, versions
    editions = {edition.name: edition for edition in found[0].supported_server_editions}
    assert {"Burstable", "GeneralPurpose", "MemoryOptimized"} <= set(editions), editions
    skus = {sku.name for sku in editions["GeneralPurpose"].supported_server_skus}
    assert "Standard_D2s_v3" in skus, skus
    assert found[0].geo_backup_supported in ("Enabled", "Disabled"), found[0]


@section("quota usages", there=SDK != "1.1.0")
def quota_usages(c):
    usages = list(c.client.quota_usages.list(LOCATION))
    assert all(usage.name.value and usage.limit >= usage.current_value >= 0 for usage in usages) and usages, usages


@section("private DNS zone suffix")
def private_dns_zone_suffix(c):
    suffix = c.dialect.dns_suffix()
    assert isinstance(suffix, str) and "." in suffix, suffix


@section("subnet usage")
def subnet_usage(c):
    asked = c.models.VirtualNetworkSubnetUsageParameter(
        virtual_network_arm_resource_id=f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Network/virtualNetworks/v")
    usage = c.dialect.subnet_usage(LOCATION, asked)
    assert list(usage.delegated_subnets_usage or []) == [], usage
    assert usage.subscription_id == SUBSCRIPTION, usage


@section("firewall rules")
def firewall_rules(c):
    rules = c.client.firewall_rules
    rule = c.models.FirewallRule(start_ip_address="10.0.0.1", end_ip_address="10.0.0.9")
    made = rules.begin_create_or_update(GROUP, c.name, "office", rule).result()
    assert made.name == "office" and (made.start_ip_address, made.end_ip_address) == ("10.0.0.1", "10.0.0.9"), made
    assert rules.get(GROUP, c.name, "office").end_ip_address == "10.0.0.9"
    assert [found.name for found in rules.list_by_server(GROUP, c.name)] == ["office"]
    backwards = c.models.FirewallRule(start_ip_address="10.0.0.9", end_ip_address="10.0.0.1")
    refused(400, "InvalidParameterValue", lambda: rules.begin_create_or_update(GROUP, c.name, "odd", backwards))
    rules.begin_delete(GROUP, c.name, "office").result()
    refused(404, "ResourceNotFound", lambda: rules.get(GROUP, c.name, "office"))
    rules.begin_delete(GROUP, c.name, "office").result()
    assert list(rules.list_by_server(GROUP, c.name)) == []


@section("databases")
def databases(c):
    databases = c.client.databases
    made = databases.begin_create(GROUP, c.name, "db1", c.models.Database(charset="UTF8", collation="C")).result()
    assert made.name == "db1" and made.charset == "UTF8" and made.collation == "C", made
    assert databases.get(GROUP, c.name, "db1").collation == "C"
    assert {"db1", "postgres"} <= {found.name for found in databases.list_by_server(GROUP, c.name)}
    assert sql(c.name, "SELECT pg_encoding_to_char(encoding), datcollate FROM pg_database WHERE datname = 'db1'") == "UTF8|C"
    databases.begin_delete(GROUP, c.name, "db1").result()
    refused(404, "ResourceNotFound", lambda: databases.get(GROUP, c.name, "db1"))
    assert sql(c.name, "SELECT count(*) FROM pg_database WHERE datname = 'db1'") == "0"
    databases.begin_delete(GROUP, c.name, "db1").result()


@section("configurations")
def configurations(c):
    configurations = c.client.configurations
    before = configurations.get(GROUP, c.name, "work_mem")
    assert before.default_value and before.data_type and before.is_dynamic_config is True, before
    assert "work_mem" in {found.name for found in configurations.list_by_server(GROUP, c.name)}
    changed = configurations.begin_update(GROUP, c.name, "work_mem", c.models.ConfigurationForUpdate(
        value="8192", source="user-override")).result()
    assert changed.value == "8192" and changed.source == "user-override", changed
    assert changed.is_config_pending_restart is False, changed
    assert sql(c.name, "SHOW work_mem") == "8MB"
    back = configurations.begin_put(GROUP, c.name, "work_mem", c.dialect.configuration(
        value=before.default_value, source="user-override")).result()
    assert back.value == before.default_value, back
    refused(404, "ResourceNotFound", lambda: configurations.get(GROUP, c.name, "no_such_setting"))
    refused(400, "InvalidParameterValue", lambda: configurations.begin_update(
        GROUP, c.name, "work_mem", c.models.ConfigurationForUpdate(value="a lot", source="user-override")))


@section("administrators")
def administrators(c):
    assert list(c.dialect.administrators.list_by_server(GROUP, c.name)) == []
    refused(404, "ResourceNotFound", lambda: c.dialect.administrators.get(GROUP, c.name, SUBSCRIPTION))


@section("private endpoint connections")
def private_endpoint_connections(c):
    connections = c.client.private_endpoint_connections
    assert list(connections.list_by_server(GROUP, c.name)) == []
    refused(404, "ResourceNotFound", lambda: connections.get(GROUP, c.name, "none"))


@section("private link resources")
def private_link_resources(c):
    assert list(c.client.private_link_resources.list_by_server(GROUP, c.name)) == []


@section("virtual endpoints")
def virtual_endpoints(c):
    assert list(c.client.virtual_endpoints.list_by_server(GROUP, c.name)) == []
    refused(404, "ResourceNotFound", lambda: c.client.virtual_endpoints.get(GROUP, c.name, "none"))


@section("captured logs")
def captured_logs(c):
    assert list(c.dialect.captured_logs.list_by_server(GROUP, c.name)) == []


@section("advanced threat protection")
def advanced_threat_protection(c):
    assert list(c.dialect.threat_protection.list_by_server(GROUP, c.name)) == []


@section("long-term retention")
def long_term_retention(c):
    assert list(c.dialect.ltr_list(GROUP, c.name)) == []
    refused(404, "ResourceNotFound", lambda: c.dialect.ltr_get(GROUP, c.name, "none"))
    # Until its part exists, the calls themselves may be refused, and say so.
    settings = c.models.BackupSettings(backup_name="ltr-1")
    refused(400, "NotSupported", lambda: c.dialect.ltr_check(GROUP, c.name, settings))
    refused(400, "NotSupported", lambda: c.dialect.ltr_start(GROUP, c.name, settings, ["https://store.example/?sig=x"]))


@section("delete")
def delete(c):
    for name in (c.copy, c.name):
        c.client.servers.begin_delete(GROUP, name).result()
        refused(404, "ResourceNotFound", lambda: c.get(name))
        c.client.servers.begin_delete(GROUP, name).result()
    listed = {server.id for server in c.client.servers.list_by_resource_group(GROUP)}
    assert not {server_id(c.name), server_id(c.copy)} & listed, listed


run(Context())
