-- A process that hung while a newer one took its node over must not take it back (RELIABILITY F24).

alter table node add column earlier_boots uuid[] not null default '{}';
comment on column node.earlier_boots is 'The newest sixteen processes that were replaced: their hello is refused.';
