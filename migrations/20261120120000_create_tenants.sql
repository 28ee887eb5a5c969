-- Whose things they are: subscriptions, resource groups, roles and management locks.

-- The only clock of leases. A test harness replaces it in its own database (DESIGN §3.11).
create function lease_now() returns timestamptz
    language sql volatile parallel safe
    as $$ select clock_timestamp() $$;
comment on function lease_now() is 'The only clock that lease SQL reads; nothing else in SQL reads one.';

create table subscription (
    id         uuid primary key,
    created_at timestamptz not null
);
comment on table  subscription is 'The tenant''s boundary; the first column of every tenant-scoped key.';
comment on column subscription.id is 'As callers write it in paths.';
comment on column subscription.created_at is 'When it was first seen.';

create table resource_group (
    subscription_id uuid not null references subscription (id),
    name_key        text not null,
    name            text not null,
    location        text not null,
    tags            jsonb not null,
    created_at      timestamptz not null,
    primary key (subscription_id, name_key),
    constraint resource_group_key_is_the_folded_name check (name_key = lower(name))
);
comment on table  resource_group is 'A named bag of resources; locks and roles can be put on it.';
comment on column resource_group.subscription_id is 'Tenant.';
comment on column resource_group.name_key is 'Lower-cased name: look-ups ignore case.';
comment on column resource_group.name is 'As it was first written; answers echo it.';
comment on column resource_group.location is 'Canonical region name; fixed.';
comment on column resource_group.tags is 'The caller''s labels.';
comment on column resource_group.created_at is 'When it was made.';

create type role_name as enum ('Reader', 'Contributor', 'Owner', 'Backup Operator');

create table role_assignment (
    principal text not null,
    scope_key text not null,
    role      role_name not null,
    scope     text not null,
    primary key (principal, scope_key, role),
    constraint role_assignment_key_is_the_folded_scope check (scope_key = lower(scope))
);
comment on table  role_assignment is 'Who may do what where. Read before anything else is looked up, for scopes that need not exist.';
comment on column role_assignment.principal is 'Object id of a user, a group or a service principal.';
comment on column role_assignment.scope_key is 'Lower-cased scope.';
comment on column role_assignment.role is 'What it may do there and below.';
comment on column role_assignment.scope is 'A resource id or one of its parents, as it was written.';

create type lock_level as enum ('CanNotDelete', 'ReadOnly');

create table management_lock (
    subscription_id uuid not null references subscription (id),
    scope_key       text not null,
    name_key        text not null,
    id              uuid not null,
    scope           text not null,
    name            text not null,
    level           lock_level not null,
    notes           text,
    created_at      timestamptz not null,
    primary key (subscription_id, scope_key, name_key),
    constraint management_lock_keys_are_folded check (scope_key = lower(scope) and name_key = lower(name))
);
comment on table  management_lock is 'Guards a scope and everything below it against deletes or writes (FLX-073).';
comment on column management_lock.subscription_id is 'Tenant.';
comment on column management_lock.scope_key is 'Lower-cased scope.';
comment on column management_lock.name_key is 'Lower-cased name.';
comment on column management_lock.id is 'Identity that outlives renaming.';
comment on column management_lock.scope is 'In the case in which it was made; refusals name it so.';
comment on column management_lock.name is 'The caller''s name for it, unique on its scope.';
comment on column management_lock.level is 'CanNotDelete refuses deletes, ReadOnly writes too.';
comment on column management_lock.notes is 'Why it is there, in its maker''s words.';
comment on column management_lock.created_at is 'When it was made.';
