-- Who did what to which resource and how it ended.

create type activity_status as enum ('Started', 'Accepted', 'Succeeded', 'Failed');

create table activity_chain (
    subscription_id uuid primary key references subscription (id),
    length          bigint not null,
    hash            bytea not null
);
comment on table  activity_chain is 'The end of each subscription''s chain of events. Locked last in a transaction, for the moment of its commit.';
comment on column activity_chain.subscription_id is 'Tenant.';
comment on column activity_chain.length is 'Number of the newest event.';
comment on column activity_chain.hash is 'Its hash.';

create table activity_event (
    subscription_id uuid not null,
    number          bigint not null,
    id              uuid not null,
    group_name      text not null,
    resource_id     text not null,
    action          text not null,
    status          activity_status not null,
    operation_id    uuid,
    caller          jsonb not null,
    correlation_id  text not null,
    at              timestamptz not null,
    http_method     text,
    http_status     integer,
    properties      jsonb not null,
    previous_hash   bytea not null,
    hash            bytea not null,
    primary key (subscription_id, number)
);
create index activity_by_time on activity_event (subscription_id, at desc, number desc);
create index activity_by_resource on activity_event (subscription_id, lower(resource_id), at desc, number desc);
create index activity_by_correlation on activity_event (subscription_id, lower(correlation_id), at desc, number desc);
create index activity_by_age on activity_event (at);
comment on table  activity_event is 'The activity log. Append-only and chained by hashes: a changed or missing event shows.';
comment on column activity_event.subscription_id is 'Tenant.';
comment on column activity_event.number is 'Counts without a hole inside the subscription.';
comment on column activity_event.id is 'Identity for readers.';
comment on column activity_event.group_name is 'Resource group, as it was first written.';
comment on column activity_event.resource_id is 'In the caller''s case.';
comment on column activity_event.action is 'What was done.';
comment on column activity_event.status is 'How far it got.';
comment on column activity_event.operation_id is 'The operation, if there is one.';
comment on column activity_event.caller is 'Who did it, from where, under which request id.';
comment on column activity_event.correlation_id is 'One for all events of one request.';
comment on column activity_event.at is 'When.';
comment on column activity_event.http_method is 'Of the request.';
comment on column activity_event.http_status is 'Of the answer.';
comment on column activity_event.properties is 'Codes, messages, ids and reasons.';
comment on column activity_event.previous_hash is 'Hash of the event before.';
comment on column activity_event.hash is 'SHA-256 over the event before and all of this one.';

create function refuse_to_change_history() returns trigger language plpgsql as $$
begin
    raise exception 'activity events are never changed';
end $$;
comment on function refuse_to_change_history() is 'The activity log is append-only; what is old enough is forgotten whole.';
create trigger activity_event_is_never_changed before update on activity_event
    for each row execute function refuse_to_change_history();
