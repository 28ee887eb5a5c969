-- What users ask for and poll, what they repeat, and what their restores hold.

create type operation_kind as enum
    ('create-server', 'restore-server', 'update-server', 'delete-server', 'start-server', 'stop-server',
     'restart-server', 'create-backup', 'delete-backup');
create type operation_state as enum ('accepted', 'running', 'canceling', 'succeeded', 'failed', 'canceled');

create table operation (
    subscription_id uuid not null,
    id              uuid not null,
    kind            operation_kind not null,
    state           operation_state not null,
    server_id       uuid not null,
    backup_id       uuid,
    resource_id     text not null,
    group_name      text not null,
    action          text not null,
    region          text not null,
    input           jsonb,
    caller          jsonb not null,
    failure         jsonb,
    progress        jsonb,
    result          jsonb,
    created_at      timestamptz not null,
    deadline        timestamptz not null,
    ended_at        timestamptz,
    primary key (subscription_id, id),
    foreign key (subscription_id, server_id) references server (subscription_id, id),
    foreign key (subscription_id, backup_id) references backup (subscription_id, id),
    constraint operation_has_an_end_when_it_ended check
        ((state in ('succeeded', 'failed', 'canceled')) = (ended_at is not null)),
    constraint operation_failed_says_why check ((state = 'failed') = (failure is not null)),
    constraint operation_forgets_its_input_when_it_ends check (ended_at is null or input is null),
    constraint operation_on_a_backup_names_it check ((kind in ('create-backup', 'delete-backup')) = (backup_id is not null))
) with (fillfactor = 80);
create unique index operation_one_exclusive_per_server on operation (subscription_id, server_id)
    where state in ('accepted', 'running', 'canceling') and backup_id is null;
create unique index operation_one_per_backup on operation (subscription_id, backup_id)
    where state in ('accepted', 'running', 'canceling') and backup_id is not null;
create index operation_open on operation (created_at) where state in ('accepted', 'running', 'canceling');
create index operation_ended on operation (ended_at) where ended_at is not null;
comment on table  operation is 'What a user asked for and polls.';
comment on column operation.subscription_id is 'Tenant.';
comment on column operation.id is 'In the polling URL.';
comment on column operation.kind is 'The verb; what follows what is in the domain''s plan.';
comment on column operation.state is 'See the domain''s OperationState.';
comment on column operation.server_id is 'What it acts on, or whose backup.';
comment on column operation.backup_id is 'The backup, for operations on one; these exclude only each other.';
comment on column operation.resource_id is 'The resource''s id in the caller''s case.';
comment on column operation.group_name is 'For its activity events.';
comment on column operation.action is 'For its activity events.';
comment on column operation.region is 'Canonical; the polling URL carries it.';
comment on column operation.input is 'What later steps need, a new server''s password included; forgotten at the end.';
comment on column operation.caller is 'Who asked; all its events have this caller.';
comment on column operation.failure is 'Code and message for whoever asked.';
comment on column operation.progress is 'As the running job last told it.';
comment on column operation.result is 'What it brought about beyond the resource itself.';
comment on column operation.created_at is 'When it was accepted.';
comment on column operation.deadline is 'When it fails by itself.';
comment on column operation.ended_at is 'When it ended.';

create table idempotency (
    subscription_id uuid not null,
    request_hash    bytea not null,
    operation_id    uuid not null,
    named           boolean not null,
    created_at      timestamptz not null,
    primary key (subscription_id, request_hash),
    constraint idempotency_hash_is_sha256 check (octet_length(request_hash) = 32)
);
create index idempotency_by_age on idempotency (created_at);
comment on table  idempotency is 'Which operation answered which request, so that a repetition gets the same answer (contract, fact 9).';
comment on column idempotency.subscription_id is 'Tenant.';
comment on column idempotency.request_hash is 'SHA-256 of principal, request id, method, path and body hash.';
comment on column idempotency.operation_id is 'The answer.';
comment on column idempotency.named is 'The client gave a request id; else a repetition counts only while the operation is under way.';
comment on column idempotency.created_at is 'Valid for ten minutes from here.';

create table pin (
    subscription_id        uuid not null,
    id                     uuid not null,
    incarnation_id         uuid not null,
    backup_id              uuid not null,
    holder_subscription_id uuid not null,
    holder_operation_id    uuid not null,
    created_at             timestamptz not null,
    primary key (subscription_id, id),
    foreign key (subscription_id, backup_id) references backup (subscription_id, id)
);
create index pin_on_incarnation on pin (subscription_id, incarnation_id);
create index pin_of_holder on pin (holder_subscription_id, holder_operation_id);
comment on table  pin is 'A running restore holds a backup and all WAL from there on; prune must not touch them.';
comment on column pin.subscription_id is 'Tenant of what is held.';
comment on column pin.id is 'Identity.';
comment on column pin.incarnation_id is 'Whose WAL is held.';
comment on column pin.backup_id is 'The backup that is held.';
comment on column pin.holder_subscription_id is 'Tenant of the restore.';
comment on column pin.holder_operation_id is 'The restore; the pin goes when it ends.';
comment on column pin.created_at is 'When it was placed.';
