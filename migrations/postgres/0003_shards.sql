-- Into how many shards the intake is divided, and which workers run. See src/shards/mod.rs.

create table division (
    only_row boolean  primary key default true,
    shards   smallint not null,
    -- The most there ever were: the queues of the others may hold orders yet.
    most     smallint not null,
    constraint division_is_one check (only_row),
    constraint division_bounded check (1 <= shards and shards <= most and most <= 64)
);

insert into division (shards, most) values (1, 1);

-- Those that run show it every second.
create table workers (
    seen_at   timestamptz      not null,
    worker_id text collate "C" primary key,
    constraint workers_bounded check (char_length(worker_id) = 36)
) with (fillfactor = 50);
