-- Queues are bound to single events or to batches of events.

create table topics (
    queue_id    integer not null references queues,
    -- 'events' or 'batches'; see src/broker/embedded/routing.rs.
    kind        text    not null,
    routing_key text    not null,
    primary key (queue_id, kind, routing_key)
) strict, without rowid;

insert into topics select queue_id, 'events', routing_key from bindings;
drop table bindings;
alter table topics rename to bindings;
