-- Idle servers share an instant. The recovery point of a server that nobody writes to is "now", and saying so for each one
-- would be a write a second for each; its node says it once for all (ADR 16).
alter table node add column idle_until timestamptz;
comment on column node.idle_until is
    'What the idle servers of the node had committed at this instant is durable, says the process boot_id.';

alter table incarnation
    add column idle_node uuid references node (id),
    add column idle_boot uuid,
    add constraint incarnation_idle_by_somebody check ((idle_node is null) = (idle_boot is null));
comment on column incarnation.idle_node is 'This is idle: caught up wherever that node''s idle_until is. Null: not idle.';
comment on column incarnation.idle_boot is 'The agent process that says so; it counts only while it is the node''s newest.';
create index incarnation_idle on incarnation (idle_node) where idle_node is not null;
