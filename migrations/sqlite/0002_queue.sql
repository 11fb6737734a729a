-- The broker of an embedded deployment. See src/broker/embedded.rs.

create table queues (
    queue_id   integer primary key,
    name       text    not null unique,
    -- The place of the message that came last; places are never given twice.
    last_place integer not null default 0,
    -- The greatest place handed to the process that consumes the queue, 0 when it has left in order.
    -- What is found up to there by the next one was in hand when its holder ended.
    handed_out integer not null default 0,
    constraint queues_handed_out_what_came check (handed_out between 0 and last_place)
) strict;

-- Events that a subscriber's queue gets.
create table bindings (
    queue_id    integer not null references queues,
    routing_key text    not null,
    primary key (queue_id, routing_key)
) strict, without rowid;

-- What waits in queues, or is in the hands of a consumer, in the order of its places.
create table messages (
    queue_id      integer not null,
    place         integer not null,
    -- How often it came back unsettled.
    returns       integer not null default 0,
    routing_key   text    not null,
    body          blob    not null,
    -- JSON, or null when there are none; see src/broker/embedded/stored.rs.
    properties    text,
    primary key (queue_id, place)
) strict, without rowid;

-- Intents that are put off until their time.
create table delayed (
    due_ms        integer not null,
    queue_id      integer not null,
    place         integer not null,
    routing_key   text    not null,
    body          blob    not null,
    properties    text,
    primary key (queue_id, due_ms, place)
) strict, without rowid;
