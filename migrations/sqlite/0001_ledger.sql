-- The ledger: the final word on every order. See docs/adr/0001-the-ledger-has-the-final-word.md.
-- The same tables as PostgreSQL's, with times as milliseconds since 1970. What PostgreSQL's
-- functions do is in src/ledger/sqlite.rs: only one transaction writes at a time here.

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
    constraint sales_stock_bounded check (stock <= 4294967295),
    constraint sales_limit_positive check (per_user_limit > 0),
    -- Equal when a sale was closed before it opened.
    constraint sales_window_ordered check (opens_at_ms <= closes_at_ms)
) strict, without rowid;

create table decisions (
    order_id      text    primary key,
    sale_id       text    not null,
    user_id       text    not null,
    quantity      integer not null,
    outcome       text    not null,
    reason        text,
    decided_at_ms integer not null,
    constraint decisions_outcome_known check (outcome in ('created', 'sold_out', 'rejected')),
    constraint decisions_reason_for_rejected check ((outcome = 'rejected') = (reason is not null))
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
    adjustment_id  text    primary key,
    sale_id        text    not null references sales,
    units          integer not null,
    version        integer not null,
    stock          integer not null,
    adjusted_at_ms integer not null,
    constraint stock_adjustments_add_units check (units > 0)
) strict, without rowid;
