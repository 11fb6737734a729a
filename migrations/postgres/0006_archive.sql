-- Decisions of a sale that closed long ago can leave the ledger for a file, and a user's id can be replaced. See
-- docs/adr/0020-archived-orders-keep-their-answers.md.

alter table sales
    -- Its orders may be in archived_orders, so each has to be looked up there.
    add column archived    boolean not null default false,
    -- Made when it is first needed: fingerprints and tokens of its users are keyed with it. 64 hex digits.
    add column erasure_key text;

-- What is kept of orders whose decisions are in a file: enough to give a repeat the same answer, and no id of a user.
-- Many orders share a row, see src/ledger/packed.rs.
create table archived_orders (
    -- Units of the created ones.
    units       bigint           not null,
    -- How many orders.
    decisions   integer          not null,
    sale_id     text collate "C" not null,
    archive_id  text collate "C" not null,
    -- No order of the row has a lesser id. The rows of an archive follow each other.
    first_order text collate "C" not null,
    orders      bytea            not null,
    primary key (sale_id, archive_id, first_order)
);

-- Digests do not get smaller.
alter table archived_orders alter column orders set storage external;

-- The files that decisions are in.
create table archives (
    decisions  bigint           not null,
    created_at timestamptz      not null,
    sale_id    text collate "C" not null,
    archive_id text collate "C" not null,
    -- writing, moving, done or restoring; see ArchiveStage in src/ledger/archive.rs.
    stage      text             not null,
    -- Where it was put.
    file       text             not null,
    -- Of the file, in hex; empty while it is written.
    sha256     text             not null,
    primary key (sale_id, archive_id)
);

-- The tokens of users whose id is replaced in a sale: their orders are taken as orders of the token.
create table erased_buyers (
    sale_id text collate "C" not null,
    token   text collate "C" not null,
    primary key (sale_id, token)
);

-- The schema that a worker knows, so that none is beside an archived sale that knows of no archived orders.
alter table workers add column knows integer not null default 5;

-- Older workers may go on until a sale is archived or a user erased; that raises usable_from.
update ledger_schema set version = 6;
