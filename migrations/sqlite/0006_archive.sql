-- Decisions of a sale that closed long ago can leave the ledger for a file, and a user's id can be replaced; as in
-- PostgreSQL's tables.

alter table sales add column archived integer not null default 0;
alter table sales add column erasure_key text;

create table archived_orders (
    sale_id     text    not null,
    archive_id  text    not null,
    first_order text    not null,
    decisions   integer not null,
    units       integer not null,
    orders      blob    not null,
    primary key (sale_id, archive_id, first_order)
) strict;

create table archives (
    sale_id    text    not null,
    archive_id text    not null,
    stage      text    not null,
    file       text    not null,
    sha256     text    not null,
    decisions  integer not null,
    created_at text    not null,
    primary key (sale_id, archive_id)
) strict, without rowid;

create table erased_buyers (
    sale_id text not null,
    token   text not null,
    primary key (sale_id, token)
) strict, without rowid;
