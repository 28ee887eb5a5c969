"""What the three versions of the SDK name differently."""

from azure.mgmt.postgresqlflexibleservers import models


class Dialect:
    def __init__(self, version, client):
        self.models, self.client = models, client
        self.first = version == "1.1.0"
        self.newest = version == "3.0.0"
        if self.first:
            self.backups = client.backups
            self.administrators = client.administrators
            self.captured_logs = client.log_files
            self.threat_protection = client.server_threat_protection_settings
            self.create = client.servers.begin_create
            self.list_servers = client.servers.list
            self.check_name = client.check_name_availability.execute
            self.check_name_in = client.check_name_availability_with_location.execute
            self.capabilities_in = client.location_based_capabilities.execute
            self.capabilities_of = client.server_capabilities.list
            self.dns_suffix = client.get_private_dns_zone_suffix.execute
            self.subnet_usage = client.virtual_network_subnet_usage.execute
            self.ltr_list, self.ltr_get = client.ltr_backup_operations.list_by_server, client.ltr_backup_operations.get
        else:
            self.backups = client.backups_automatic_and_on_demand
            self.administrators = client.administrators_microsoft_entra
            self.captured_logs = client.captured_logs
            self.threat_protection = client.advanced_threat_protection_settings
            self.create = client.servers.begin_create_or_update
            self.list_servers = client.servers.list_by_subscription
            self.check_name = client.name_availability.check_globally
            self.check_name_in = client.name_availability.check_with_location
            self.capabilities_in = client.capabilities_by_location.list
            self.capabilities_of = client.capabilities_by_server.list
            self.dns_suffix = client.private_dns_zone_suffix.get
            self.subnet_usage = client.virtual_network_subnet_usage.list
            retention = client.backups_long_term_retention
            self.ltr_list, self.ltr_get = retention.list_by_server, retention.get

    def operations(self):
        listed = self.client.operations.list()
        # The oldest has one object and no pages.
        return listed.value if self.first else listed

    def patch(self, **changes):
        return (models.ServerForUpdate if self.first else models.ServerForPatch)(**changes)

    def backup_patch(self, **changes):
        return (models.Backup if self.first else models.BackupForPatch)(**changes)

    def window_patch(self, **changes):
        return (models.MaintenanceWindow if self.first else models.MaintenanceWindowForPatch)(**changes)

    def configuration(self, **changes):
        """Of a PUT."""
        return (models.Configuration if self.first else models.ConfigurationForUpdate)(**changes)

    def restart(self, **wishes):
        return models.RestartParameter(**wishes)

    def ltr_check(self, group, server, settings):
        if self.first:
            return self.client.flexible_server.trigger_ltr_pre_backup(
                group, server, models.LtrPreBackupRequest(backup_settings=settings))
        return self.client.backups_long_term_retention.check_prerequisites(
            group, server, models.LtrPreBackupRequest(backup_settings=settings))

    def ltr_start(self, group, server, settings, urls):
        target = models.BackupStoreDetails(sas_uri_list=urls)
        if self.first:
            return self.client.flexible_server.begin_start_ltr_backup(
                group, server, models.LtrBackupRequest(backup_settings=settings, target_details=target))
        return self.client.backups_long_term_retention.begin_start(
            group, server, models.BackupsLongTermRetentionRequest(backup_settings=settings, target_details=target))
