"""The official SDK, unmodified: create, back up, restore, delete (FLX-150).

Run with the site's facts in the environment; REQUESTS_CA_BUNDLE names its CA. Prints what each step
returned and exits non-zero when one is not as promised.
"""

import datetime
import os
import sys
import time

from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.mgmt.postgresqlflexibleservers import PostgreSQLManagementClient


class GivenToken:
    def get_token(self, *scopes, **kwargs):
        return AccessToken(os.environ["HOLDFAST_TOKEN"], int(time.time()) + 3600)

    def get_token_info(self, *scopes, **kwargs):
        from azure.core.credentials import AccessTokenInfo

        return AccessTokenInfo(os.environ["HOLDFAST_TOKEN"], int(time.time()) + 3600)


def main() -> None:
    url, group = os.environ["HOLDFAST_URL"], os.environ["HOLDFAST_RESOURCE_GROUP"]
    client = PostgreSQLManagementClient(
        GivenToken(),
        os.environ["HOLDFAST_SUBSCRIPTION"],
        base_url=url,
        credential_scopes=[url + "/.default"],
    )
    body = {
        "location": "eastus2",
        "sku": {"name": "Standard_D2s_v3", "tier": "GeneralPurpose"},
        "properties": {
            "administratorLogin": "hfadmin",
            "administratorLoginPassword": "Quite-Secret-1",
            "version": os.environ["HOLDFAST_VERSION"],
            "storage": {"storageSizeGB": 32},
            "createMode": "Create",
        },
    }
    server = client.servers.begin_create_or_update(group, "sdk1", body).result()
    assert server.properties.state == "Ready", server.properties.state
    assert server.properties.backup.backup_retention_days == 7
    print("created", server.id, server.properties.state)

    backup = client.backups_automatic_and_on_demand.begin_create(group, "sdk1", "by-hand").result()
    assert backup.properties.backup_type == "Customer On-Demand", backup
    names = [item.name for item in client.backups_automatic_and_on_demand.list_by_server(group, "sdk1")]
    assert "by-hand" in names, names
    print("backed up", backup.properties.completed_time, names)

    server = client.servers.begin_update(
        group, "sdk1", {"properties": {"backup": {"backupRetentionDays": 14}}}
    ).result()
    assert server.properties.backup.backup_retention_days == 14
    assert server.properties.backup.earliest_restore_date is not None
    print("updated", server.properties.backup.earliest_restore_date)

    try:
        client.servers.begin_update(
            group, "sdk1", {"properties": {"backup": {"backupRetentionDays": 36}}}
        ).result()
        sys.exit("36 days were accepted")
    except HttpResponseError as error:
        assert error.status_code == 400 and error.error.code == "InvalidParameterValue", error
        print("refused", error.error.code)

    restored = client.servers.begin_create_or_update(
        group,
        "sdk1-restored",
        {
            "location": "eastus2",
            "properties": {
                "createMode": "PointInTimeRestore",
                "sourceServerResourceId": server.id,
                "pointInTimeUTC": datetime.datetime.now(datetime.timezone.utc),
            },
        },
    ).result()
    assert restored.properties.state == "Ready", restored.properties.state
    assert restored.properties.administrator_login == "hfadmin"
    print("restored", restored.id)

    client.servers.begin_stop(group, "sdk1-restored").result()
    assert client.servers.get(group, "sdk1-restored").properties.state == "Stopped"
    client.servers.begin_start(group, "sdk1-restored").result()

    client.backups_automatic_and_on_demand.begin_delete(group, "sdk1", "by-hand").result()
    for name in ("sdk1-restored", "sdk1"):
        client.servers.begin_delete(group, name).result()
    assert list(client.servers.list_by_resource_group(group)) == []
    print("deleted")


main()
