-- What attempts that ended without a backup, and servers that were never made, left in a store is looked for
-- once they are old, and deleted when nothing names it (RELIABILITY §5.6).
alter table job add column reclaimed_at timestamptz;
comment on column job.reclaimed_at is 'When what this snapshot job''s attempts left in the store was looked for and deleted.';
create index job_to_reclaim on job (subscription_id, incarnation_id, ended_at)
    where kind = 'snapshot' and ended_at is not null and reclaimed_at is null
      and attempts > 0 and (state <> 'done' or attempts > 1);

alter table server drop constraint server_purged_is_dropped;
alter table server add constraint server_purged_is_over check (purged_at is null or state in ('dropped', 'failed'));
create index server_never_made on server (id) where state = 'failed' and purged_at is null;
