-- Sales can be paused: their orders are refused, or held back and not aged meanwhile. See SaleState in
-- src/domain/sale.rs.

alter table sales
    -- refuse or hold, while it is paused.
    add column paused     text,
    -- When its orders were first held, and when that last ended.
    add column held_from  timestamptz,
    add column held_until timestamptz,
    add constraint sales_pause_known check (paused in ('refuse', 'hold'));

-- p stands for paused. The rows that are there kept the narrower rule, so none has to be read.
alter table decisions drop constraint decisions_outcome_known;
alter table decisions
    add constraint decisions_outcome_known
        check (outcome in ('c', 's', 'd', 'l', 'n', 'x', 'e', 'p')) not valid;

create or replace view decided_orders as
select sale_id, order_id, user_id, quantity,
       case outcome when 'c' then 'created' when 's' then 'sold_out' else 'rejected' end as outcome,
       case outcome when 'd' then 'user_denied' when 'l' then 'purchase_limit'
           when 'n' then 'not_open' when 'x' then 'closed' when 'e' then 'expired'
           when 'p' then 'paused' end as reason,
       decided_at - waited_ms * interval '1 millisecond' as submitted_at, decided_at, version, sold
from decisions;
