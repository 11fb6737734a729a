-- A sale is held when the ledger has lost what it had committed of it, until an operator accepts that.
alter table sales drop constraint sales_pause_known;
alter table sales
    add constraint sales_pause_known check (paused in ('refuse', 'hold', 'restored')) not valid;

-- Which binaries may work on this schema: those that know its version or a newer one, and older ones that know
-- usable_from at least. A migration raises usable_from when the version before must not run beside it.
create table ledger_schema (
    only_row    boolean primary key default true,
    version     integer not null,
    usable_from integer not null,
    constraint ledger_schema_is_one check (only_row)
);

insert into ledger_schema (version, usable_from) values (5, 2);
grant select on ledger_schema to public;
