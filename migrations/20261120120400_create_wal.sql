-- What is known of the WAL in the vaults.

create type wal_object_state as enum ('durable', 'superseded', 'expiring');

create table wal_object (
    subscription_id uuid not null,
    incarnation_id  uuid not null,
    key             text not null,
    timeline        integer not null,
    range_start     bigint not null,
    range_end       bigint not null,
    plaintext_hash  text not null,
    stored_bytes    bigint not null,
    stamps          jsonb,
    last_counting   bigint,
    clock_anomaly   jsonb,
    state           wal_object_state not null default 'durable',
    delete_after    timestamptz,
    primary key (subscription_id, incarnation_id, key),
    foreign key (subscription_id, incarnation_id) references incarnation (subscription_id, id),
    constraint wal_object_is_a_range check (timeline > 0 and 0 <= range_start and range_start < range_end),
    constraint wal_object_unlinked_says_until_when check ((state = 'durable') = (delete_after is null))
);
create index wal_object_in_order on wal_object (subscription_id, incarnation_id, range_end)
    where state = 'durable';
create index wal_object_to_prune on wal_object (subscription_id, incarnation_id, delete_after)
    where state <> 'durable';
comment on table  wal_object is 'One sealed range of WAL of one timeline.';
comment on column wal_object.subscription_id is 'Tenant.';
comment on column wal_object.incarnation_id is 'Whose WAL.';
comment on column wal_object.key is 'In its vault.';
comment on column wal_object.timeline is 'Of the range.';
comment on column wal_object.range_start is 'First byte.';
comment on column wal_object.range_end is 'First byte after the range.';
comment on column wal_object.plaintext_hash is 'BLAKE3 of the plaintext; the same key with another hash is a conflict.';
comment on column wal_object.stored_bytes is 'In the store.';
comment on column wal_object.stamps is 'First, last and largest commit stamp in it.';
comment on column wal_object.last_counting is 'Where its last record that counts as a modification starts.';
comment on column wal_object.clock_anomaly is 'A stretch in which the server''s clock ran backwards.';
comment on column wal_object.state is 'Durable; a tail that a longer object replaced; or unlinked by retention.';
comment on column wal_object.delete_after is 'Its bytes may be deleted from then on.';

create table wal_gap (
    subscription_id uuid not null,
    incarnation_id  uuid not null,
    timeline        integer not null,
    range_start     bigint not null,
    range_end       bigint not null,
    seen_at         timestamptz not null,
    primary key (subscription_id, incarnation_id, timeline, range_start),
    foreign key (subscription_id, incarnation_id) references incarnation (subscription_id, id),
    constraint wal_gap_is_a_range check (0 <= range_start and range_start < range_end)
);
comment on table  wal_gap is 'WAL that is in no store and no directory: a hole for ever.';
comment on column wal_gap.subscription_id is 'Tenant.';
comment on column wal_gap.incarnation_id is 'Whose WAL.';
comment on column wal_gap.timeline is 'Of the hole.';
comment on column wal_gap.range_start is 'First byte that is lost.';
comment on column wal_gap.range_end is 'First byte that is there again.';
comment on column wal_gap.seen_at is 'When it was reported.';
