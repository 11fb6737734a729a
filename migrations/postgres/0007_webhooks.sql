-- Where events go by HTTP requests. See src/webhooks/mod.rs. Few rows, which no order touches, so the sale is not
-- first in their keys. Times that are compared are milliseconds since 1970.

create table webhooks (
    created_at       timestamptz      not null,
    -- Where in the feed to go on: after a place, or since a time; neither: with the oldest that is kept.
    after_place      bigint,
    since            timestamptz,
    failing_since    timestamptz,
    disabled_at      timestamptz,
    missed_at        timestamptz,
    claimed_until_ms bigint           not null default 0,
    revision         integer          not null default 0,
    webhook_id       text collate "C" primary key,
    url              text             not null,
    sale_id          text collate "C",
    -- JSON: what requests are signed with, and until when.
    secrets          text             not null,
    replay_sale_id   text collate "C",
    replay_after     text collate "C",
    reason           text,
    claimed_by       text
) with (fillfactor = 50);

-- Deliveries that wait, with their events, and the latest of those that are over.
create table webhook_deliveries (
    first_ms   bigint           not null,
    last_ms    bigint           not null,
    next_ms    bigint,
    attempts   integer          not null,
    status     integer,
    webhook_id text collate "C" not null,
    event_id   text collate "C" not null,
    event_type text             not null,
    state      text             not null,
    answer     text             not null,
    event      text             not null,
    primary key (webhook_id, event_id),
    constraint webhook_deliveries_state_known check (state in ('delivered', 'waiting', 'given_up'))
);

create index webhook_deliveries_due on webhook_deliveries (webhook_id, state, next_ms);

update ledger_schema set version = 7;
