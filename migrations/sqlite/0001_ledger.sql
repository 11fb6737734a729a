-- The ledger: the final word on every order. See docs/adr/0008-the-ledger-decides.md.
-- The same tables as PostgreSQL's, with times as text.

create table sales (
    sale_id        text    primary key,
    stock          integer not null,
    sold           integer not null default 0,
    per_user_limit integer,
    opens_at       text,
    closes_at      text,
    verification   integer not null default 0,
    -- Counts changes of the definition; see SaleState in src/domain/sale.rs.
    version        integer not null default 1,
    -- When the last unit was sold, while none is left.
    sold_out_at    text,
    constraint sales_never_oversold check (sold between 0 and stock),
    constraint sales_limit_positive check (per_user_limit > 0),
    -- Equal when a sale was closed before it opened.
    constraint sales_window_ordered check (opens_at <= closes_at)
) strict, without rowid;

create table decisions (
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
    constraint decisions_outcome_known check (outcome in ('c', 's', 'd', 'l', 'n', 'x', 'e'))
) strict, without rowid;

-- Units by buyer, kept only for sales with a limit per user. The limit stands in the row, so that
-- the database itself can hold it.
create table buyers (
    sale_id    text    not null,
    user_id    text    not null,
    units      integer not null,
    unit_limit integer not null,
    primary key (sale_id, user_id),
    constraint buyers_within_limit check (units <= unit_limit)
) strict, without rowid;

-- What happened to a sale's stock, which subscribers are owed until it is published: that it sold out
-- (no adjustment), or that an adjustment has restocked it, once for each adjustment id.
create table announcements (
    sale_id       text    not null,
    version       integer not null,
    adjustment_id text    not null,
    units         integer,
    stock         integer not null,
    at            text    not null,
    published     integer not null default false,
    primary key (sale_id, adjustment_id, version)
) strict, without rowid;

create index announcements_owed on announcements (sale_id) where not published;
