-- Where events go by HTTP requests; as on PostgreSQL.

create table webhooks (
    webhook_id       text primary key,
    url              text not null,
    sale_id          text,
    secrets          text not null,
    created_at       text not null,
    after_place      integer,
    since            text,
    replay_sale_id   text,
    replay_after     text,
    failing_since    text,
    disabled_at      text,
    reason           text,
    missed_at        text,
    revision         integer not null default 0,
    claimed_by       text,
    claimed_until_ms integer not null default 0
) strict, without rowid;

create table webhook_deliveries (
    webhook_id text    not null,
    event_id   text    not null,
    event_type text    not null,
    event      text    not null,
    state      text    not null check (state in ('delivered', 'waiting', 'given_up')),
    attempts   integer not null,
    first_ms   integer not null,
    last_ms    integer not null,
    next_ms    integer,
    status     integer,
    answer     text    not null,
    primary key (webhook_id, event_id)
) strict, without rowid;

create index webhook_deliveries_due on webhook_deliveries (webhook_id, state, next_ms);
