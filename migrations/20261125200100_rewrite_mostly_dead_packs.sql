-- Packs most of which no backup needs are rewritten (DESIGN §3.1, ADR 18).

-- Whoever writes or deletes backup objects of one life takes turns, compaction included (DESIGN §3.9).
drop index job_one_writer_of_backup_objects;
create unique index job_one_writer_of_backup_objects on job (subscription_id, incarnation_id)
    where state = 'leased' and kind in ('snapshot', 'prune', 'compact');
create unique index job_one_open_compaction on job (subscription_id, incarnation_id)
    where state in ('queued', 'leased') and kind = 'compact';
drop index job_to_reclaim;
create index job_to_reclaim on job (subscription_id, incarnation_id, ended_at)
    where kind in ('snapshot', 'compact') and ended_at is not null and reclaimed_at is null
      and attempts > 0 and (state <> 'done' or attempts > 1);
comment on column job.reclaimed_at is 'When what the attempts of this snapshot or compaction left in the store was looked for and deleted.';

alter table backup_object add column living bigint;
alter table backup_object add constraint backup_object_lives_at_most_whole check (living between 0 and bytes);
comment on column backup_object.living is 'About how many of its bytes this backup needs; null: not known, so all.';

alter table backup add column next_generation integer;
comment on column backup.next_generation is 'The first manifest generation that no compaction may have written yet; null: the one after that in use.';

alter table incarnation add column compaction_looked_at timestamptz;
comment on column incarnation.compaction_looked_at is 'When it was last decided whether packs are rewritten.';
alter table incarnation add column backup_bytes bigint not null default 0;
comment on column incarnation.backup_bytes is 'Packs and leaf objects in the store, each once however many backups name it; what waits to be deleted included.';
update incarnation i
   set backup_bytes = (select coalesce(sum(once.bytes), 0)::bigint
                         from (select max(o.bytes) as bytes from backup_object o
                                where o.subscription_id = i.subscription_id and o.incarnation_id = i.id
                                group by o.key) once);

create table superseded_object (
    subscription_id uuid not null,
    incarnation_id  uuid not null,
    key             text not null,
    bytes           bigint not null,
    job_id          uuid not null,
    superseded_at   timestamptz not null,
    delete_after    timestamptz not null,
    primary key (subscription_id, incarnation_id, key),
    foreign key (subscription_id, incarnation_id) references incarnation (subscription_id, id)
);
create index superseded_object_of_job on superseded_object (subscription_id, job_id);
comment on table  superseded_object is 'Objects and manifests that a backup named before packs were rewritten, and manifests that came to nothing. Each goes when its time has come, no backup names it and nobody may be reading it.';
comment on column superseded_object.subscription_id is 'Tenant.';
comment on column superseded_object.incarnation_id is 'Whose object.';
comment on column superseded_object.key is 'The object.';
comment on column superseded_object.bytes is 'In the store; 0 for manifests, which are small.';
comment on column superseded_object.job_id is 'The compaction.';
comment on column superseded_object.superseded_at is 'When the catalogue turned to something else.';
comment on column superseded_object.delete_after is 'It may be deleted from then on.';

alter table prune_tally add column rewritten_bytes bigint not null default 0;
comment on column prune_tally.rewritten_bytes is 'Bytes of new objects that compactions wrote.';
