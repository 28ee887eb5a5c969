-- A kind can be used only after the transaction that adds it.
alter type job_kind add value 'compact' after 'prune';
