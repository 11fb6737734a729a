-- The ledger: the final word on every order. See docs/adr/0008-the-ledger-decides.md.
-- The same tables as PostgreSQL's, with times as milliseconds since 1970.

create table sales (
    sale_id        text    primary key,
    stock          integer not null,
    sold           integer not null default 0,
    per_user_limit integer,
    opens_at_ms    integer,
    closes_at_ms   integer,
    verification   integer not null default 0,
    -- Counts changes of the definition; see SaleState in src/sale.rs.
    version        integer not null default 1,
    -- When the last unit was sold, while none is left.
    sold_out_at_ms integer,
    constraint sales_never_oversold check (sold between 0 and stock),
    constraint sales_limit_positive check (per_user_limit > 0),
    -- Equal when a sale was closed before it opened.
    constraint sales_window_ordered check (opens_at_ms <= closes_at_ms)
) strict, without rowid;

create table decisions (
    sale_id         text    not null,
    order_id        text    not null,
    user_id         text    not null,
    quantity        integer not null,
    -- created, sold_out, or the reason it was rejected for.
    outcome         text    not null,
    submitted_at_ms integer not null,
    decided_at_ms   integer not null,
    -- The sale's version and units sold at the order's turn: by them a refusal can be checked.
    version         integer not null,
    sold            integer not null,
    primary key (sale_id, order_id)
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

-- Restocks, with the version and the stock that the sale has got by each.
create table stock_adjustments (
    sale_id        text    not null,
    adjustment_id  text    not null,
    units          integer not null,
    version        integer not null,
    stock          integer not null,
    adjusted_at_ms integer not null,
    primary key (sale_id, adjustment_id),
    constraint stock_adjustments_add_units check (units > 0)
) strict, without rowid;

-- What subscribers are owed of a sale, until it is published: that it sold out (no adjustment), or
-- that an adjustment has restocked it.
create table announcements (
    sale_id       text    not null,
    version       integer not null,
    adjustment_id text    not null default '',
    units         integer,
    stock         integer not null,
    at_ms         integer not null,
    primary key (sale_id, version, adjustment_id)
) strict, without rowid;
