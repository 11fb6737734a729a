-- Sales can be paused; as in PostgreSQL's tables.

alter table sales add column paused text check (paused in ('refuse', 'hold'));
alter table sales add column held_from text;
alter table sales add column held_until text;

-- SQLite cannot change a constraint, so the table is made anew.
create table decisions_now (
    sale_id    text    not null,
    order_id   text    not null,
    user_id    text    not null,
    quantity   integer not null,
    -- As in PostgreSQL's table.
    outcome    text    not null,
    waited_ms  integer not null,
    decided_at text    not null,
    version    integer not null,
    sold       integer not null,
    primary key (sale_id, order_id),
    constraint decisions_outcome_known check (outcome in ('c', 's', 'd', 'l', 'n', 'x', 'e', 'p'))
) strict, without rowid;

insert into decisions_now select * from decisions;
drop table decisions;
alter table decisions_now rename to decisions;
