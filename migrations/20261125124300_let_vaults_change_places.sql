-- A vault that is put before another of its zone moves that one. Both orders are right; what is in between
-- is nobody's business before the commit.

alter table vault drop constraint vault_place_has_one_of_each_ordinal;
alter table vault add constraint vault_place_has_one_of_each_ordinal
    unique nulls not distinct (region, zone, ordinal) deferrable initially deferred;
