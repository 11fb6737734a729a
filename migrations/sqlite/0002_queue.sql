-- The broker of an embedded deployment. See src/broker/embedded.rs.

create table queues (
    queue_id   integer primary key,
    name       text    not null unique,
    -- The position of the message that came last; positions are never used twice.
    last_position integer not null default 0,
    -- The greatest position delivered to the process that consumes the queue, 0 when it has ended in order.
    -- Messages up to there that the next process finds were unsettled when that one ended.
    delivered integer not null default 0,
    constraint queues_delivered_what_came check (delivered between 0 and last_position)
) strict;

-- Events that a subscriber's queue gets.
create table bindings (
    queue_id    integer not null references queues,
    routing_key text    not null,
    primary key (queue_id, routing_key)
) strict, without rowid;

-- Messages that wait in queues or are unsettled, in the order of their positions.
create table messages (
    queue_id      integer not null,
    position         integer not null,
    -- How often it came back unsettled.
    returns       integer not null default 0,
    routing_key   text    not null,
    body          blob    not null,
    -- JSON, or null when there are none; see src/broker/embedded/stored.rs.
    properties    text,
    primary key (queue_id, position)
) strict, without rowid;

-- Deferred intents.
create table delayed (
    due_ms        integer not null,
    queue_id      integer not null,
    position         integer not null,
    routing_key   text    not null,
    body          blob    not null,
    properties    text,
    primary key (queue_id, due_ms, position)
) strict, without rowid;
