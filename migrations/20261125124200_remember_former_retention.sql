-- A retention that was made shorter lets nothing go for a day: whoever mistyped it can take it back
-- (RELIABILITY §5.6).

alter table server add column former_retention_days smallint;
alter table server add column retention_changed_at timestamptz;
alter table server add constraint server_former_retention_says_since_when check
    ((former_retention_days is null) = (retention_changed_at is null));
comment on column server.former_retention_days is 'What was kept before it was made shorter; sweeping still keeps it for a day.';
comment on column server.retention_changed_at is 'When it was made shorter, on the database''s clock.';
