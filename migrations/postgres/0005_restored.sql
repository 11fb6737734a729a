-- A sale is held when the ledger has lost what it had committed of it, until an operator accepts that.
alter table sales drop constraint sales_pause_known;
alter table sales
    add constraint sales_pause_known check (paused in ('refuse', 'hold', 'restored')) not valid;
