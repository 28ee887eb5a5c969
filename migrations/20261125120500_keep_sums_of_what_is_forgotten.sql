-- Sums that monitoring shows as counters must never go down, and rows that they are made of are deleted after a time.

create table operation_tally (
    kind       operation_kind not null,
    state      operation_state not null,
    at_most_s  double precision not null,
    operations bigint not null,
    seconds    double precision not null,
    primary key (kind, state, at_most_s),
    constraint operation_tally_is_of_ended_ones check (state in ('succeeded', 'failed', 'canceled'))
);
comment on table  operation_tally is 'How long forgotten operations took, so that a histogram of all of them only grows. Written by the duty that forgets.';
comment on column operation_tally.kind is 'The verb.';
comment on column operation_tally.state is 'How they ended.';
comment on column operation_tally.at_most_s is 'The smallest bound of the histogram that is not below their duration; Infinity above all bounds.';
comment on column operation_tally.operations is 'How many.';
comment on column operation_tally.seconds is 'What their durations come to.';

create table prune_tally (
    is_the_one boolean primary key default true,
    bytes      bigint not null,
    constraint prune_tally_is_one_row check (is_the_one)
);
comment on table  prune_tally is 'What prune jobs have freed so far; jobs are forgotten.';
comment on column prune_tally.is_the_one is 'There is one row.';
comment on column prune_tally.bytes is 'Stored bytes that were deleted.';
