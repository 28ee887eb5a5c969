-- Work for nodes, held under leases.

create type job_kind as enum ('provision', 'snapshot', 'archive-wal', 'restore', 'prune', 'power', 'drop');
create type job_state as enum ('queued', 'leased', 'done', 'failed', 'canceled');

create table job (
    subscription_id uuid not null,
    id              uuid not null,
    operation_id    uuid,
    server_id       uuid not null,
    incarnation_id  uuid,
    backup_id       uuid,
    base_backup_id  uuid,
    node_id         uuid not null references node (id),
    kind            job_kind not null,
    state           job_state not null default 'queued',
    priority        smallint not null,
    run_at          timestamptz not null default lease_now(),
    spec            jsonb,
    epoch           bigint not null default 0,
    boot_id         uuid,
    lease_until     timestamptz,
    attempts        integer not null default 0,
    max_attempts    integer not null,
    cancel_asked    boolean not null default false,
    deadline        timestamptz not null,
    error           jsonb,
    result_hash     bytea,
    caller          jsonb not null,
    created_at      timestamptz not null,
    ended_at        timestamptz,
    primary key (subscription_id, id),
    foreign key (subscription_id, operation_id) references operation (subscription_id, id),
    foreign key (subscription_id, server_id) references server (subscription_id, id),
    constraint job_leased_says_to_whom_and_until_when check
        (state <> 'leased' or (boot_id is not null and lease_until is not null and epoch > 0)),
    constraint job_ended_says_when check ((state in ('done', 'failed', 'canceled')) = (ended_at is not null)),
    constraint job_forgets_its_spec_when_it_ends check ((ended_at is null) = (spec is not null)),
    constraint job_failed_says_why check (state <> 'failed' or error is not null),
    constraint job_snapshot_names_its_backup check ((kind = 'snapshot') = (backup_id is not null))
) with (fillfactor = 80);
-- Claiming walks this index from its start: no scan, no sort (RELIABILITY §3.4).
create index job_ready on job (node_id, priority, run_at, id) where state = 'queued';
create index job_lease_end on job (lease_until) where state = 'leased';
create index job_by_id on job (id);
create index job_of_operation on job (subscription_id, operation_id, created_at) where operation_id is not null;
create index job_open_of_server on job (subscription_id, server_id) where state in ('queued', 'leased');
create index job_ended on job (ended_at) where ended_at is not null;
-- Work of one incarnation that writes or deletes backup objects is serialised (DESIGN §3.9).
create unique index job_one_writer_of_backup_objects on job (subscription_id, incarnation_id)
    where state = 'leased' and kind in ('snapshot', 'prune');
create unique index job_one_open_snapshot on job (subscription_id, incarnation_id)
    where state in ('queued', 'leased') and kind = 'snapshot';
create unique index job_one_open_prune on job (subscription_id, incarnation_id)
    where state in ('queued', 'leased') and kind = 'prune';
comment on table  job is 'One piece of work for one node.';
comment on column job.subscription_id is 'Tenant.';
comment on column job.id is 'Identity; in the keys of objects that an attempt makes.';
comment on column job.operation_id is 'What asked for it; null: the scheduler''s own wish.';
comment on column job.server_id is 'The server that it is for.';
comment on column job.incarnation_id is 'The life whose directory or objects it works on.';
comment on column job.backup_id is 'The backup that a snapshot makes.';
comment on column job.base_backup_id is 'The backup whose unchanged frames a snapshot names again; not deleted while it runs.';
comment on column job.node_id is 'Who does it.';
comment on column job.kind is 'The verb.';
comment on column job.state is 'See the domain''s JobState.';
comment on column job.priority is 'Smaller first: what users wait for comes before what the scheduler wants.';
comment on column job.run_at is 'Not before; on the lease clock.';
comment on column job.spec is 'The work itself, self-contained; forgotten at the end, because it may hold a password.';
comment on column job.epoch is 'Raised by every lease; anything older is refused.';
comment on column job.boot_id is 'The agent process that has or had it.';
comment on column job.lease_until is 'On the lease clock.';
comment on column job.attempts is 'Leases so far.';
comment on column job.max_attempts is 'Then it is given up.';
comment on column job.cancel_asked is 'No longer wanted; its agent is told when it next renews.';
comment on column job.deadline is 'Then it is given up.';
comment on column job.error is 'How the last attempt failed.';
comment on column job.result_hash is 'SHA-256 of the accepted report: the same report twice is one report.';
comment on column job.caller is 'Who caused it; its trace context goes to the agent.';
comment on column job.created_at is 'When it was queued.';
comment on column job.ended_at is 'When it ended.';
