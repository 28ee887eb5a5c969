-- What the installation's configuration says is made equal to it at each start; what was assigned otherwise stays.
alter table role_assignment add column configured boolean not null default false;
-- Until now configuration was the only way in.
update role_assignment set configured = true;
comment on column role_assignment.configured is 'It stands in the configuration, and goes when it no longer does.';
