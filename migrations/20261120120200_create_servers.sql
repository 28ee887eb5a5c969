-- Servers, their names, and the lives of their data directories.

create type server_state as enum
    ('provisioning', 'ready', 'updating', 'stopping', 'stopped', 'starting', 'dropping', 'dropped', 'failed');

create table server (
    subscription_id  uuid not null,
    id               uuid not null,
    group_key        text not null,
    group_name       text not null,
    name             text not null,
    region           text not null,
    state            server_state not null,
    settings         jsonb not null,
    is_replica       boolean not null,
    node_id          uuid references node (id),
    placed_zone      text,
    port             integer,
    minor_version    text,
    incarnation_id   uuid,
    created_at       timestamptz not null,
    stopped_at       timestamptz,
    dropped_at       timestamptz,
    restorable_until timestamptz,
    purged_at        timestamptz,
    primary key (subscription_id, id),
    foreign key (subscription_id, group_key) references resource_group (subscription_id, name_key),
    constraint server_name_is_lower_case check (name = lower(name)),
    constraint server_group_key_is_folded check (group_key = lower(group_name)),
    constraint server_stopped_says_since_when check (state <> 'stopped' or stopped_at is not null),
    constraint server_dropped_says_until_when check
        ((state = 'dropped') = (dropped_at is not null and restorable_until is not null)),
    constraint server_dropped_has_no_node check (state <> 'dropped' or node_id is null),
    constraint server_purged_is_dropped check (purged_at is null or state = 'dropped'),
    constraint server_on_a_node_has_a_port check ((node_id is null) = (port is null))
);
create unique index server_living_name on server (subscription_id, name)
    where state not in ('dropped', 'failed');
create index server_living_of_group on server (subscription_id, group_key, name)
    where state not in ('dropped', 'failed');
create index server_of_node on server (node_id) where node_id is not null;
create index server_tombstone on server (restorable_until) where state = 'dropped' and purged_at is null;
comment on table  server is 'One managed PostgreSQL instance. Dropped ones stay as tombstones, failed ones were never made and are shown to nobody.';
comment on column server.subscription_id is 'Tenant.';
comment on column server.id is 'Identity for life; names identify nothing.';
comment on column server.group_key is 'Lower-cased resource group.';
comment on column server.group_name is 'The resource group as it was first written.';
comment on column server.name is 'Lower case.';
comment on column server.region is 'Canonical region name; fixed.';
comment on column server.state is 'See the domain''s ServerState.';
comment on column server.settings is 'What the caller decides about it; never a password.';
comment on column server.is_replica is 'On-demand backups are refused on replicas.';
comment on column server.node_id is 'Where its directory is; null once that is gone.';
comment on column server.placed_zone is 'The zone it really is in; stays on a tombstone, whose copies are there.';
comment on column server.port is 'Of its node''s range, kept for life.';
comment on column server.minor_version is 'As its node last reported it.';
comment on column server.incarnation_id is 'Its present life.';
comment on column server.created_at is 'When it was accepted.';
comment on column server.stopped_at is 'The retention window stands still here (FLX-146).';
comment on column server.dropped_at is 'When it became a tombstone.';
comment on column server.restorable_until is 'Until then its backups are kept.';
comment on column server.purged_at is 'When nothing of it was left in any store.';

create table server_name (
    name            text primary key,
    subscription_id uuid not null,
    server_id       uuid not null,
    foreign key (subscription_id, server_id) references server (subscription_id, id)
);
comment on table  server_name is 'Names of living servers; unique over the installation because they become host names. A row goes with its server, so a dropped one''s name is free at once.';
comment on column server_name.name is 'Lower case.';
comment on column server_name.subscription_id is 'Tenant of the server that has it.';
comment on column server_name.server_id is 'The server that has it.';

create table incarnation (
    subscription_id   uuid not null,
    id                uuid not null,
    server_id         uuid not null,
    vault_ids         uuid[] not null,
    created_at        timestamptz not null,
    ready_at          timestamptz,
    system_identifier text,
    wrapped_key       jsonb,
    wal_segment_bytes bigint,
    head              integer not null default 1,
    durable           bigint not null default 0,
    caught_up_at      timestamptz,
    last_counting     bigint,
    held_bytes        bigint not null default 0,
    primary key (subscription_id, id),
    foreign key (subscription_id, server_id) references server (subscription_id, id),
    constraint incarnation_has_a_vault check (cardinality(vault_ids) > 0),
    constraint incarnation_ready_knows_its_key check
        (ready_at is null or (system_identifier is not null and wrapped_key is not null and wal_segment_bytes is not null)),
    constraint incarnation_positions_are_positive check (head > 0 and durable >= 0 and coalesce(last_counting, 0) >= 0)
) with (fillfactor = 70);
create index incarnation_by_id on incarnation (id);
create index incarnation_of_server on incarnation (subscription_id, server_id);
comment on table  incarnation is 'One life of a data directory. The hot row of its stream: updated with every WAL report, so half of each page is kept free and no moving column is indexed.';
comment on column incarnation.subscription_id is 'Tenant.';
comment on column incarnation.id is 'In every object key; renewed by every restore, never by a failover.';
comment on column incarnation.server_id is 'Whose life it is.';
comment on column incarnation.vault_ids is 'Vaults that must hold an object before it counts as durable; decided once.';
comment on column incarnation.created_at is 'When it was accepted.';
comment on column incarnation.ready_at is 'When its directory was finished; the birthday of its daily slot.';
comment on column incarnation.system_identifier is 'PostgreSQL''s, as text; identifies nothing, a restored copy has its source''s.';
comment on column incarnation.wrapped_key is 'Its data key, wrapped; useless without the key-encryption key.';
comment on column incarnation.wal_segment_bytes is 'Needed to cut WAL at segments.';
comment on column incarnation.head is 'The timeline it writes now.';
comment on column incarnation.durable is 'WAL position on the head: all before it is in every demanded vault.';
comment on column incarnation.caught_up_at is 'The newest instant at which everything committed was durable.';
comment on column incarnation.last_counting is 'WAL position of the newest record that counts as a modification.';
comment on column incarnation.held_bytes is 'WAL that the slot keeps because the store has not taken it yet.';

alter table server add constraint server_present_life
    foreign key (subscription_id, incarnation_id) references incarnation (subscription_id, id) deferrable initially deferred;

create table timeline_start (
    subscription_id uuid not null,
    incarnation_id  uuid not null,
    timeline        integer not null,
    parent          integer,
    switch          bigint not null,
    history_key     text,
    primary key (subscription_id, incarnation_id, timeline),
    foreign key (subscription_id, incarnation_id) references incarnation (subscription_id, id),
    constraint timeline_descends_from_a_smaller_one check (timeline > 0 and (parent is null or parent < timeline))
);
comment on table  timeline_start is 'Where each timeline branched off, taken from history files. Kept for ever.';
comment on column timeline_start.subscription_id is 'Tenant.';
comment on column timeline_start.incarnation_id is 'Whose timeline.';
comment on column timeline_start.timeline is 'Its number, which says nothing about descent.';
comment on column timeline_start.parent is 'Null for the one on which the incarnation''s WAL begins.';
comment on column timeline_start.switch is 'WAL position at which it begins; the parent counts up to here.';
comment on column timeline_start.history_key is 'Key of the stored history file; null for timeline 1.';
