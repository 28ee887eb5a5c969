-- What a node says is wrong with a server, so that somebody can be told.

alter table incarnation
    add column problem       text,
    add column problem_since timestamptz,
    add constraint incarnation_problem_says_since_when check ((problem is null) = (problem_since is null));
comment on column incarnation.problem is 'What its node said with its last hello: a drifted setting, a conflict in its write-ahead log, a postmaster that does not stay up. Null when all is well; moves only when it changes.';
comment on column incarnation.problem_since is 'When that was first said.';
