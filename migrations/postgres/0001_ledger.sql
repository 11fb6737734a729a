-- The ledger: the final word on every order. See docs/adr/0008-the-ledger-decides.md.
--
-- Every table has the sale first in its primary key, so that all that belongs to a sale can live on
-- one shard. Ids are compared byte by byte ("C"): then Rust, SQL and the indexes agree on their order,
-- in which rows are locked and inserted. Fixed-width columns stand first, so that no byte is lost to
-- alignment.

create table sales (
    sale_id        text collate "C" primary key,
    stock          integer          not null,
    sold           integer          not null default 0,
    per_user_limit bigint,
    opens_at       timestamptz,
    closes_at      timestamptz,
    verification   boolean          not null default false,
    -- Counts changes of the definition; see SaleState in src/domain/sale.rs.
    version        integer          not null default 1,
    -- When the last unit was sold, while none is left.
    sold_out_at    timestamptz,
    constraint sales_never_oversold check (sold between 0 and stock),
    constraint sales_limit_positive check (per_user_limit > 0),
    -- Equal when a sale was closed before it opened.
    constraint sales_window_ordered check (opens_at <= closes_at)
-- A sale that sells is updated with every batch: with room on its page the row needs no new index entry.
) with (fillfactor = 10);

-- One row for each order, for ever, so every byte counts; decided_orders shows them in words.
create table decisions (
    decided_at timestamptz      not null,
    -- From the order's time to decided_at.
    waited_ms  integer          not null,
    quantity   integer          not null,
    -- The sale's version and units sold at the order's turn: by them a refusal can be checked.
    version    integer          not null,
    sold       integer          not null,
    sale_id    text collate "C" not null,
    order_id   text collate "C" not null,
    user_id    text collate "C" not null,
    -- c created, s sold_out, or why it was rejected: d user_denied, l purchase_limit, n not_open,
    -- x closed, e expired.
    outcome    "char"           not null,
    primary key (sale_id, order_id) with (fillfactor = 100),
    constraint decisions_outcome_known check (outcome in ('c', 's', 'd', 'l', 'n', 'x', 'e'))
);

-- The decisions in the words of the events.
create view decided_orders as
select sale_id, order_id, user_id, quantity,
       case outcome when 'c' then 'created' when 's' then 'sold_out' else 'rejected' end as outcome,
       case outcome when 'd' then 'user_denied' when 'l' then 'purchase_limit'
           when 'n' then 'not_open' when 'x' then 'closed' when 'e' then 'expired' end as reason,
       decided_at - waited_ms * interval '1 millisecond' as submitted_at, decided_at, version, sold
from decisions;

-- Units by buyer, kept only for sales with a limit per user. The limit stands in the row, so that
-- the database itself can hold it.
create table buyers (
    sale_id    text collate "C" not null,
    user_id    text collate "C" not null,
    units      bigint           not null,
    unit_limit bigint           not null,
    primary key (sale_id, user_id),
    constraint buyers_within_limit check (units <= unit_limit)
);

-- What happened to a sale's stock, which subscribers are owed until it is published: that it sold out
-- (no adjustment), or that an adjustment has restocked it, once for each adjustment id.
create table announcements (
    sale_id       text collate "C" not null,
    version       integer          not null,
    adjustment_id text collate "C" not null,
    units         integer,
    stock         integer          not null,
    at            timestamptz      not null,
    published     boolean          not null default false,
    primary key (sale_id, adjustment_id, version)
);

create index announcements_owed on announcements (sale_id) where not published;
