"""What surrounds a server, by the official clients: azure-mgmt-resource, its locks package, azure-mgmt-subscription,
azure-mgmt-monitor; and the flow that needs two of them, bringing a dropped server back.
"""

import datetime
import json

from azure.identity import ClientSecretCredential
from azure.mgmt.monitor import MonitorManagementClient
from azure.mgmt.postgresqlflexibleservers import PostgreSQLManagementClient
from azure.mgmt.postgresqlflexibleservers import models as postgresql
from azure.mgmt.resource.locks import ManagementLockClient
from azure.mgmt.resource.locks.models import ManagementLockObject
from azure.mgmt.resource.resources import ResourceManagementClient
from azure.mgmt.resource.resources.models import ResourceGroup, ResourceGroupPatchable
from azure.mgmt.subscription import SubscriptionClient

from sections import (GROUP, LOCATION, PASSWORD, PROVIDER, SUBSCRIPTION, TENANT, URL, VERSION, given, holdfast, refused,
                      run, section, server_id, sql, until)

NAME, OTHER_GROUP = "arm-1", "arm-group"
SCOPE = f"/subscriptions/{SUBSCRIPTION}"
GROUP_SCOPE = f"{SCOPE}/resourceGroups/{GROUP}"
# In the form of the wire: no zone is UTC.
BEGINNING = (datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=5)).strftime("%Y-%m-%dT%H:%M:%S.%f")


class Context:
    def __init__(self):
        self.servers = given(PostgreSQLManagementClient, SUBSCRIPTION).servers
        self.resources = given(ResourceManagementClient, SUBSCRIPTION)
        self.locks = given(ManagementLockClient, SUBSCRIPTION).management_locks
        self.subscriptions = given(SubscriptionClient)
        self.monitor = given(MonitorManagementClient, SUBSCRIPTION)

    def events(self, *terms, **keywords):
        terms = [f"eventTimestamp ge '{BEGINNING}'", *terms]
        return list(self.monitor.activity_logs.list(filter=" and ".join(terms), **keywords))


@section("service principal")
def service_principal(c):
    said = json.loads(holdfast("principal", "create", "arm-client", "--role", "Contributor", "--scope", SCOPE, "-o", "json"))
    assert said["tenant"] == TENANT, said

    def resources_of(secret):
        credential = ClientSecretCredential(said["tenant"], said["client_id"], secret, authority=URL,
                                            disable_instance_discovery=True)
        return given(ResourceManagementClient, SUBSCRIPTION, credential=credential)

    assert resources_of(said["client_secret"]).resource_groups.get(GROUP).name == GROUP
    # Contributors make no locks.
    token = ClientSecretCredential(said["tenant"], said["client_id"], said["client_secret"], authority=URL,
                                   disable_instance_discovery=True)
    locks = given(ManagementLockClient, SUBSCRIPTION, credential=token).management_locks
    refused(403, "AuthorizationFailed", lambda: locks.create_or_update_at_resource_group_level(
        GROUP, "mine", ManagementLockObject(level="CanNotDelete")))
    try:
        resources_of("not the secret").resource_groups.get(GROUP)
    except Exception as error:
        assert type(error).__name__ == "ClientAuthenticationError", error
    else:
        raise AssertionError("a wrong secret was taken")


@section("subscriptions")
def subscriptions(c):
    one = c.subscriptions.subscriptions.get(SUBSCRIPTION)
    assert one.subscription_id == SUBSCRIPTION and one.state == "Enabled" and one.display_name, one
    assert SUBSCRIPTION in {found.subscription_id for found in c.subscriptions.subscriptions.list()}
    refused(404, "SubscriptionNotFound", lambda: c.subscriptions.subscriptions.get(TENANT))


@section("subscription locations")
def subscription_locations(c):
    found = {place.name: place for place in c.subscriptions.subscriptions.list_locations(SUBSCRIPTION)}
    assert found[LOCATION].display_name == "East US 2" and found[LOCATION].subscription_id in (None, SUBSCRIPTION), found


@section("tenants")
def tenants(c):
    assert TENANT in {tenant.tenant_id for tenant in c.subscriptions.tenants.list()}


@section("resource groups")
def resource_groups(c):
    groups = c.resources.resource_groups
    assert groups.check_existence(OTHER_GROUP) is False and groups.check_existence(GROUP.upper()) is True
    refused(404, "ResourceGroupNotFound", lambda: groups.get(OTHER_GROUP))
    made = groups.create_or_update(OTHER_GROUP, ResourceGroup(location=LOCATION, tags={"team": "a"}))
    assert made.name == OTHER_GROUP and made.properties.provisioning_state == "Succeeded", made
    assert made.id == f"{SCOPE}/resourceGroups/{OTHER_GROUP}" and made.type == "Microsoft.Resources/resourceGroups", made
    assert groups.get(OTHER_GROUP).tags == {"team": "a"}
    refused(409, "InvalidResourceGroupLocation", lambda: groups.create_or_update(OTHER_GROUP, ResourceGroup(location="westus")))


@section("resource group list")
def resource_group_list(c):
    assert {GROUP, OTHER_GROUP} <= {group.name for group in c.resources.resource_groups.list()}


@section("resource group update")
def resource_group_update(c):
    changed = c.resources.resource_groups.update(OTHER_GROUP, ResourceGroupPatchable(tags={"team": "b"}))
    assert changed.tags == {"team": "b"}, changed


@section("create", vital=True)
def create(c):
    server = c.servers.begin_create_or_update(GROUP, NAME, postgresql.Server(
        location=LOCATION, sku=postgresql.Sku(name="Standard_B2s", tier="Burstable"), version=VERSION,
        administrator_login="hfadmin", administrator_login_password=PASSWORD,
        storage=postgresql.Storage(storage_size_gb=32), create_mode="Create")).result()
    assert server.state == "Ready", server
    sql(NAME, "CREATE TABLE kept (word text); INSERT INTO kept VALUES ('yes')")


@section("resource lists")
def resource_lists(c):
    of_type = f"resourceType eq '{PROVIDER}/flexibleServers'"
    for found in (c.resources.resources.list(filter=of_type), c.resources.resources.list_by_resource_group(GROUP, filter=of_type)):
        ids = {resource.id.lower() for resource in found}
        assert server_id(NAME).lower() in ids and not any("/backups/" in one for one in ids), ids


@section("providers")
def providers(c):
    one = c.resources.providers.get(PROVIDER)
    assert one.namespace == PROVIDER and one.registration_state == "Registered", one
    versions = {kind.resource_type: kind.api_versions for kind in one.resource_types}
    assert "2026-10-01" in versions["flexibleServers"], versions
    assert c.resources.providers.register(PROVIDER).registration_state == "Registered"
    assert {PROVIDER, "Microsoft.Resources", "Microsoft.Authorization", "Microsoft.Insights"} <= {
        found.namespace for found in c.resources.providers.list()}


@section("locks")
def locks(c):
    keep = ManagementLockObject(level="CanNotDelete", notes="keep")
    # As users of the SDK call it: with an empty parent path, which comes as two slashes.
    on_server = (GROUP, PROVIDER, "", "flexibleServers", NAME)
    made = c.locks.create_or_update_at_resource_level(*on_server, "keep", keep)
    assert made.level == "CanNotDelete" and made.notes == "keep" and made.type == "Microsoft.Authorization/locks", made
    assert made.id == f"{server_id(NAME)}/providers/Microsoft.Authorization/locks/keep", made
    assert c.locks.get_at_resource_level(*on_server, "keep").level == "CanNotDelete"
    assert "keep" in {lock.name for lock in c.locks.list_at_resource_level(*on_server)}
    assert "keep" in {lock.name for lock in c.locks.list_at_resource_group_level(GROUP)}
    error = refused(409, "ScopeLocked", lambda: c.servers.begin_delete(GROUP, NAME))
    assert server_id(NAME) in error.error.message, error
    c.servers.begin_update(GROUP, NAME, postgresql.ServerForPatch(tags={"a": "b"})).result()
    c.locks.delete_at_resource_level(*on_server, "keep")

    by_scope = server_id(NAME)
    made = c.locks.create_or_update_by_scope(by_scope, "still", ManagementLockObject(level="ReadOnly"))
    assert made.level == "ReadOnly", made
    for ask in (lambda: c.servers.begin_update(GROUP, NAME, postgresql.ServerForPatch(tags={"a": "c"})),
                lambda: c.servers.begin_stop(GROUP, NAME), lambda: c.servers.begin_delete(GROUP, NAME)):
        refused(409, "ScopeLocked", ask)
    assert c.servers.get(GROUP, NAME).tags == {"a": "b"}
    c.locks.delete_by_scope(by_scope, "still")
    refused(404, "LockNotFound", lambda: c.locks.get_by_scope(by_scope, "still"))
    c.locks.delete_by_scope(by_scope, "still")

    # Not on the group or the subscription of the servers that others use at this moment.
    c.locks.create_or_update_at_resource_group_level(OTHER_GROUP, "group", keep)
    assert "group" in {lock.name for lock in c.locks.list_at_subscription_level()}
    assert c.locks.get_at_resource_group_level(OTHER_GROUP, "group").notes == "keep"
    c.locks.delete_at_resource_group_level(OTHER_GROUP, "group")
    refused(400, ("InvalidParameterValue", "InvalidRequestContent"), lambda: c.locks.create_or_update_at_resource_group_level(
        OTHER_GROUP, "odd", ManagementLockObject(level="NotSpecified")))


@section("resource group delete")
def resource_group_delete(c):
    c.resources.resource_groups.begin_delete(OTHER_GROUP).result()
    assert c.resources.resource_groups.check_existence(OTHER_GROUP) is False


@section("activity log")
def activity_log(c):
    events = until("the create's end", lambda: [
        event for event in c.events(f"resourceUri eq '{server_id(NAME)}'")
        if event.operation_name.value == f"{PROVIDER}/flexibleServers/write" and event.status.value == "Succeeded"])
    event = events[-1]
    assert event.resource_id.lower() == server_id(NAME).lower() and event.subscription_id == SUBSCRIPTION, event
    assert event.caller and event.level == "Informational" and event.category.value == "Administrative", event
    assert event.resource_group_name.lower() == GROUP.lower() and event.tenant_id == TENANT, event
    together = {one.status.value for one in c.events(f"correlationId eq '{event.correlation_id}'")}
    assert {"Started", "Accepted", "Succeeded"} <= together, together
    times = [one.event_timestamp for one in c.events(f"resourceGroupName eq '{GROUP}'")]
    assert times == sorted(times, reverse=True) and times, "newest first"
    few = c.events(f"resourceProvider eq '{PROVIDER}'", select="eventTimestamp , status")
    assert few[0].status.value and few[0].event_timestamp and not few[0].caller, few[0]
    refused(400, ("BadRequest", "InvalidParameterValue", "InvalidFilter"), lambda: c.monitor.activity_logs.list(
        filter=f"resourceGroupName eq '{GROUP}'"))


@section("event categories")
def event_categories(c):
    assert "Administrative" in {category.value for category in c.monitor.event_categories.list()}


@section("metric definitions")
def metric_definitions(c):
    found = {metric.name.value: metric for metric in c.monitor.metric_definitions.list(server_id(NAME))}
    used = found["backup_storage_used"]
    assert used.unit == "Bytes" and used.primary_aggregation_type and used.metric_availabilities, used
    assert "storage_used" in found, sorted(found)


@section("metrics")
def metrics(c):
    now = datetime.datetime.now(datetime.timezone.utc)
    span = "/".join((now + datetime.timedelta(minutes=by)).strftime("%Y-%m-%dT%H:%M:%SZ") for by in (-30, 1))
    answer = c.monitor.metrics.list(server_id(NAME), metricnames="backup_storage_used", timespan=span, interval="PT1M",
                                    aggregation="Average,Maximum")
    (metric,) = answer.value
    assert metric.name.value == "backup_storage_used" and metric.unit == "Bytes" and metric.timeseries is not None, metric
    refused(400, ("BadRequest", "InvalidParameterValue", "InvalidMetricName"), lambda: c.monitor.metrics.list(
        server_id(NAME), metricnames="no_such_metric"))


@section("delete")
def delete(c):
    c.servers.begin_delete(GROUP, NAME).result()
    refused(404, "ResourceNotFound", lambda: c.servers.get(GROUP, NAME))


@section("revive dropped")
def revive_dropped(c):
    """As the service's documentation says: the time of the successful delete, out of the activity log."""
    event = until("the delete's end", lambda: next(iter(
        event for event in c.events(f"resourceUri eq '{server_id(NAME)}'")
        if event.operation_name.value == f"{PROVIDER}/flexibleServers/delete" and event.status.value == "Succeeded"), None))
    revived = c.servers.begin_create_or_update(GROUP, NAME, postgresql.Server(
        location=LOCATION, create_mode="ReviveDropped", source_server_resource_id=server_id(NAME),
        point_in_time_utc=event.submission_timestamp)).result()
    assert revived.state == "Ready" and revived.administrator_login == "hfadmin", revived
    assert sql(NAME, "SELECT word FROM kept") == "yes"
    c.servers.begin_delete(GROUP, NAME).result()


run(Context())
