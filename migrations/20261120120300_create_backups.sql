-- Backups, the objects that they name, and their copies.

create type backup_kind as enum ('automatic', 'on-demand');
create type backup_state as enum ('requested', 'running', 'complete', 'expiring', 'gone', 'failed');

create table backup (
    subscription_id uuid not null,
    id              uuid not null,
    server_id       uuid not null,
    incarnation_id  uuid not null,
    kind            backup_kind not null,
    state           backup_state not null,
    name            text,
    name_key        text,
    slot            timestamptz,
    requested_at    timestamptz not null,
    timeline        integer,
    start_lsn       bigint,
    stop_lsn        bigint,
    completed_time  timestamptz,
    manifest        jsonb,
    logical_bytes   bigint,
    stored_bytes    bigint,
    damaged         boolean,
    failed_at       timestamptz,
    failure         jsonb,
    hidden_at       timestamptz,
    delete_after    timestamptz,
    gone_at         timestamptz,
    primary key (subscription_id, id),
    foreign key (subscription_id, server_id) references server (subscription_id, id),
    foreign key (subscription_id, incarnation_id) references incarnation (subscription_id, id),
    constraint backup_complete_knows_what_it_is check
        (state not in ('complete', 'expiring', 'gone') or
         (name is not null and timeline is not null and start_lsn is not null and stop_lsn is not null
          and completed_time is not null and manifest is not null and logical_bytes is not null
          and stored_bytes is not null and damaged is not null)),
    constraint backup_open_has_no_end check
        (state not in ('requested', 'running') or (completed_time is null and failed_at is null)),
    constraint backup_failed_says_why check ((state = 'failed') = (failed_at is not null and failure is not null)),
    constraint backup_expiring_says_until_when check (state <> 'expiring' or delete_after is not null),
    constraint backup_gone_says_since_when check ((state = 'gone') = (gone_at is not null)),
    constraint backup_automatic_has_a_slot check ((kind = 'automatic') = (slot is not null)),
    constraint backup_on_demand_has_a_name check (kind = 'automatic' or name is not null),
    constraint backup_name_key_is_folded check (name_key is not distinct from lower(name)),
    constraint backup_starts_before_it_stops check (start_lsn <= stop_lsn)
);
create unique index backup_name_on_its_server on backup (subscription_id, server_id, name_key)
    where state in ('requested', 'running', 'complete') and hidden_at is null;
create unique index backup_one_open_automatic on backup (subscription_id, incarnation_id)
    where kind = 'automatic' and state in ('requested', 'running');
create index backup_by_id on backup (id);
create index backup_of_server on backup (subscription_id, server_id, state);
create index backup_of_incarnation on backup (subscription_id, incarnation_id, state);
create index backup_to_prune on backup (delete_after) where state = 'expiring';
comment on table  backup is 'One physical image of a data directory.';
comment on column backup.subscription_id is 'Tenant.';
comment on column backup.id is 'Identity; in its manifest''s key.';
comment on column backup.server_id is 'Whose image.';
comment on column backup.incarnation_id is 'The life it was taken of.';
comment on column backup.kind is 'Taken by the service, or asked for.';
comment on column backup.state is 'See the domain''s BackupState.';
comment on column backup.name is 'The caller''s; an automatic one gets its name when it is complete.';
comment on column backup.name_key is 'Lower-cased name.';
comment on column backup.slot is 'The daily slot that an automatic backup was taken for.';
comment on column backup.requested_at is 'When it was asked for or scheduled; on-demand ones count from here.';
comment on column backup.timeline is 'Where it was taken.';
comment on column backup.start_lsn is 'Recovery begins here.';
comment on column backup.stop_lsn is 'It is consistent from here on.';
comment on column backup.completed_time is 'Every commit stamped up to here is in it, and none stamped later.';
comment on column backup.manifest is 'The manifest generation in use: key, hash, generation.';
comment on column backup.logical_bytes is 'Of the data directory that it describes.';
comment on column backup.stored_bytes is 'That it added to the store.';
comment on column backup.damaged is 'Pages failed their checksum; it never lets the last clean one expire.';
comment on column backup.failed_at is 'When it was given up.';
comment on column backup.failure is 'Code and message.';
comment on column backup.hidden_at is 'Its user deleted it, but instants of the window are still reached through it only; it goes as soon as they are not.';
comment on column backup.delete_after is 'Unlinked; its bytes may be deleted from then on.';
comment on column backup.gone_at is 'When its bytes were deleted.';

create table backup_object (
    subscription_id uuid not null,
    backup_id       uuid not null,
    key             text not null,
    incarnation_id  uuid not null,
    bytes           bigint not null,
    primary key (subscription_id, backup_id, key),
    foreign key (subscription_id, backup_id) references backup (subscription_id, id)
);
create index backup_object_references on backup_object (subscription_id, incarnation_id, key);
comment on table  backup_object is 'Which backup needs which pack or leaf: an object may go when nothing names it any more.';
comment on column backup_object.subscription_id is 'Tenant.';
comment on column backup_object.backup_id is 'Whose manifest names the object.';
comment on column backup_object.key is 'The object.';
comment on column backup_object.incarnation_id is 'Objects are shared inside one incarnation only.';
comment on column backup_object.bytes is 'In the store.';

create type copy_state as enum ('missing', 'copying', 'present', 'expiring', 'gone');

create table copy (
    subscription_id uuid not null,
    backup_id       uuid not null,
    vault_id        uuid not null references vault (id),
    state           copy_state not null,
    present_at      timestamptz,
    primary key (subscription_id, backup_id, vault_id),
    foreign key (subscription_id, backup_id) references backup (subscription_id, id),
    constraint copy_present_says_since_when check (state <> 'present' or present_at is not null)
);
comment on table  copy is 'A backup in one vault. Present: manifest, leaves, packs and WAL from start to stop are there.';
comment on column copy.subscription_id is 'Tenant.';
comment on column copy.backup_id is 'What is copied.';
comment on column copy.vault_id is 'Where it is.';
comment on column copy.state is 'See DESIGN §2.';
comment on column copy.present_at is 'When the whole closure was durable there.';
