-- The machines that run agents, how they join, and the stores beside them.

create table node (
    id           uuid primary key,
    name         text not null,
    region       text not null,
    zone         text,
    host         text not null,
    socket_root  text,
    majors       jsonb not null,
    port_first   integer not null,
    port_last    integer not null,
    free_bytes   bigint not null,
    drained      boolean not null default false,
    boot_id      uuid,
    last_seen_at timestamptz,
    joined_at    timestamptz not null,
    revoked_at   timestamptz,
    constraint node_name_is_unique unique (name),
    constraint node_port_range_is_a_range check (0 < port_first and port_first <= port_last and port_last < 65536)
) with (fillfactor = 70);
comment on table  node is 'A machine that runs an agent. Belongs to the installation, not to a tenant.';
comment on column node.id is 'In the agent''s client certificate.';
comment on column node.name is 'What operators call it; a node that joins again under its name is the same node.';
comment on column node.region is 'Canonical; bound by the join token.';
comment on column node.zone is 'Bound by the join token; null where the region has none.';
comment on column node.host is 'What clients on its network call it.';
comment on column node.socket_root is 'A server''s socket directory on the node is socket_root/port.';
comment on column node.majors is 'PostgreSQL major to newest minor found there.';
comment on column node.port_first is 'First port that its servers may use.';
comment on column node.port_last is 'Last port that its servers may use.';
comment on column node.free_bytes is 'Of the file system that holds its data directories.';
comment on column node.drained is 'Takes no new servers.';
comment on column node.boot_id is 'The agent process that spoke last; older ones are refused.';
comment on column node.last_seen_at is 'Last hello. Not indexed, so that hellos stay heap-only updates.';
comment on column node.joined_at is 'When its first token was used.';
comment on column node.revoked_at is 'From then on nothing is heard from it.';

create table join_token (
    hash       bytea primary key,
    node_name  text not null,
    region     text not null,
    zone       text,
    expires_at timestamptz not null,
    used_at    timestamptz,
    constraint join_token_hash_is_sha256 check (octet_length(hash) = 32)
);
comment on table  join_token is 'Lets one agent of one name and place join once (RELIABILITY §4.3).';
comment on column join_token.hash is 'SHA-256 of the secret; the secret itself is nowhere.';
comment on column join_token.node_name is 'The only name that may use it.';
comment on column join_token.region is 'The only region that may use it.';
comment on column join_token.zone is 'The only zone that may use it.';
comment on column join_token.expires_at is 'Short-lived.';
comment on column join_token.used_at is 'Single use: set by the update that takes it.';

create table vault (
    id         uuid primary key,
    region     text not null,
    zone       text,
    url        text not null,
    own_copies integer not null,
    ordinal    integer not null,
    constraint vault_place_has_one_of_each_ordinal unique nulls not distinct (region, zone, ordinal),
    constraint vault_url_is_unique unique (url),
    constraint vault_keeps_at_least_one_copy check (own_copies > 0)
);
comment on table  vault is 'A place for copies: one failure domain. Belongs to the installation.';
comment on column vault.id is 'Identity; copies name it.';
comment on column vault.region is 'Canonical region name.';
comment on column vault.zone is 'Null where the region has none.';
comment on column vault.url is 'As agents reach it.';
comment on column vault.own_copies is 'Copies that it keeps by itself: 1 for a directory, 3 for an S3-class store.';
comment on column vault.ordinal is 'Order in its zone; the lowest is written first.';
