-- The ledger: the final word on every order. See docs/adr/0001-the-ledger-has-the-final-word.md.

create table sales (
    sale_id        text        primary key,
    stock          bigint      not null,
    sold           bigint      not null default 0,
    per_user_limit bigint,
    opens_at       timestamptz,
    closes_at      timestamptz,
    verification   boolean     not null default false,
    -- Counts changes of the definition; see SaleState in src/sale.rs.
    version        bigint      not null default 1,
    -- When the last unit was sold, while none is left.
    sold_out_at    timestamptz,
    created_at     timestamptz not null default now(),
    constraint sales_never_oversold check (sold between 0 and stock),
    constraint sales_stock_bounded check (stock <= 4294967295),
    constraint sales_limit_positive check (per_user_limit > 0),
    -- Equal when a sale was closed before it opened.
    constraint sales_window_ordered check (opens_at <= closes_at)
);

-- No foreign key to sales: its check would lock the row of the sale for every order, sold-out ones
-- included, and record_decisions looks at the sale wherever units move.
create table decisions (
    order_id   text        primary key,
    sale_id    text        not null,
    user_id    text        not null,
    quantity   integer     not null,
    outcome    text        not null,
    reason     text,
    decided_at timestamptz not null,
    constraint decisions_outcome_known check (outcome in ('created', 'sold_out', 'rejected')),
    constraint decisions_reason_for_rejected check ((outcome = 'rejected') = (reason is not null))
);

-- Units by buyer, kept only for sales with a limit per user. The limit stands in the row, so that
-- the database itself can hold it.
create table buyers (
    sale_id    text   not null,
    user_id    text   not null,
    units      bigint not null,
    unit_limit bigint not null,
    primary key (sale_id, user_id),
    constraint buyers_within_limit check (units <= unit_limit)
);

-- Restocks, with the version and the stock that the sale has got by each.
create table stock_adjustments (
    adjustment_id text        primary key,
    sale_id       text        not null references sales,
    units         bigint      not null,
    version       bigint      not null,
    stock         bigint      not null,
    adjusted_at   timestamptz not null,
    constraint stock_adjustments_add_units check (units > 0)
);

-- Adds units to a sale, once for each adjustment id. Returns the adjustment that the id stands for,
-- or nothing when there is no such sale.
create function restock_sale(p_adjustment_id text, p_sale_id text, p_units bigint, p_at timestamptz)
returns setof stock_adjustments
language plpgsql
as $$
begin
    -- Whoever restocks the same sale waits here, so that a repeat sees what the first has written.
    perform from sales s where s.sale_id = p_sale_id for no key update;
    if not found then
        return;
    end if;
    insert into stock_adjustments (adjustment_id, sale_id, units, version, stock, adjusted_at)
    select p_adjustment_id, s.sale_id, p_units, s.version + 1, s.stock + p_units, p_at
    from sales s where s.sale_id = p_sale_id
    on conflict (adjustment_id) do nothing;
    if found then
        update sales s set stock = s.stock + p_units, version = s.version + 1, sold_out_at = null
        where s.sale_id = p_sale_id;
    end if;
    return query select * from stock_adjustments a where a.adjustment_id = p_adjustment_id;
end
$$;

-- Records a batch of proposed decisions in one call.
--
-- The arrays hold one entry for each order, in the order of the queue; the order ids are distinct.
-- p_expected names those that were probably recorded before: a hint that only saves time.
-- A proposal is stored as it is when its order id is new and, for a created one, when the sale's
-- window, the buyer's limit and the stock allow it. Otherwise the decision that stands instead is
-- returned, with the row's place in the arrays, whether it was known before, and the units sold of
-- the sale that the proposal was for. Rows that were stored as proposed are not returned.
-- Then come, with place 0, the sales that orders are proposed as created for and that have no unit
-- left: their version, the units sold, and when the last one was.
--
-- Order ids are locked in their order by the insert, then sales in theirs: two batches can wait for
-- each other, but never both ways. A batch without a created proposal locks no sale.
create function record_decisions(
    p_order_ids text[], p_sale_ids text[], p_user_ids text[], p_quantities integer[],
    p_submitted_at timestamptz[], p_outcomes text[], p_reasons text[], p_decided_at timestamptz,
    p_expected text[]
) returns table (
    r_place bigint, r_known boolean, r_sale_id text, r_user_id text, r_quantity integer,
    r_outcome text, r_reason text, r_decided_at timestamptz, r_sold bigint, r_version bigint
)
language plpgsql
-- Plans are kept from when the tables were empty, and reading them whole looked cheap.
set enable_seqscan = off
as $$
declare
    v_looked  text[];                    -- order ids looked up before storing the others
    v_known   text[];                    -- order ids recorded before
    v_sales   text[];                    -- sales with a new created proposal
    v_tight   text[];                    -- those of them whose proposals don't all fit
    v_refused text[] := '{}';            -- new created proposals that are not to be
    v_row     record;
    v_why     text;
    v_outcomes text[] := '{}';
    v_reasons  text[] := '{}';
    v_left    jsonb := '{}';             -- stock left by sale, while walking the tight ones
    v_bought  jsonb := '{}';             -- units by sale and buyer, likewise
begin
    -- Looking up 256 order ids costs half as much as storing them, and "on conflict do nothing" is no
    -- cheaper. So only those that are expected to be there are looked up first.
    v_looked := p_expected;
    loop
        if cardinality(v_looked) > 0 then
            select array_agg(d.order_id) into v_known
            from decisions d where d.order_id = any (v_looked);
        end if;
        begin
            insert into decisions (order_id, sale_id, user_id, quantity, outcome, reason, decided_at)
            select i.order_id, i.sale_id, i.user_id, i.quantity, i.outcome, i.reason, p_decided_at
            from unnest(p_order_ids, p_sale_ids, p_user_ids, p_quantities, p_outcomes, p_reasons)
                as i (order_id, sale_id, user_id, quantity, outcome, reason)
            where v_known is null or i.order_id <> all (v_known)
            order by i.order_id collate "C";
            exit;
        exception when unique_violation then
            -- One of the others is known after all, or somebody recorded it just now.
            v_looked := p_order_ids;
        end;
    end loop;

    if 'created' = any (p_outcomes) then
        select array_agg(distinct i.sale_id) into v_sales
        from unnest(p_order_ids, p_sale_ids, p_outcomes) as i (order_id, sale_id, outcome)
        where i.outcome = 'created' and (v_known is null or i.order_id <> all (v_known));

        perform from sales s where s.sale_id = any (v_sales) order by s.sale_id for no key update;

        -- The ordinary case needs no look at single rows: all that a sale's orders want is there.
        with wanted as (
            select i.sale_id, i.user_id, sum(i.quantity) as units,
                   min(i.submitted_at) as first_at, max(i.submitted_at) as last_at
            from unnest(p_order_ids, p_sale_ids, p_user_ids, p_quantities, p_submitted_at, p_outcomes)
                as i (order_id, sale_id, user_id, quantity, submitted_at, outcome)
            where i.outcome = 'created' and (v_known is null or i.order_id <> all (v_known))
            group by i.sale_id, i.user_id
        ), by_sale as (
            select w.sale_id, sum(w.units) as units, max(w.units) as most,
                   min(w.first_at) as first_at, max(w.last_at) as last_at
            from wanted w group by w.sale_id
        )
        select array_agg(b.sale_id) into v_tight
        from by_sale b left join sales s using (sale_id)
        where s.sale_id is null
           or s.sold + b.units > s.stock
           or b.first_at < s.opens_at
           or b.last_at >= s.closes_at
           or s.per_user_limit is not null and exists (
                select from wanted w left join buyers u using (sale_id, user_id)
                where w.sale_id = b.sale_id and coalesce(u.units, 0) + w.units > s.per_user_limit);

        if v_tight is not null then
            for v_row in
                select i.order_id, i.sale_id, i.user_id, i.quantity, i.submitted_at,
                       s.stock - s.sold as remaining, s.per_user_limit, s.opens_at, s.closes_at,
                       coalesce(u.units, 0) as bought, i.sale_id || ' ' || i.user_id as buyer
                from unnest(p_order_ids, p_sale_ids, p_user_ids, p_quantities, p_submitted_at, p_outcomes)
                    with ordinality as i (order_id, sale_id, user_id, quantity, submitted_at, outcome, place)
                left join sales s using (sale_id)
                left join buyers u on u.sale_id = i.sale_id and u.user_id = i.user_id
                where i.outcome = 'created' and i.sale_id = any (v_tight)
                  and (v_known is null or i.order_id <> all (v_known))
                order by i.place
            loop
                if v_row.remaining is null then
                    raise exception 'sale % is unknown to the ledger', v_row.sale_id;
                end if;
                v_row.remaining := coalesce((v_left ->> v_row.sale_id)::bigint, v_row.remaining);
                v_row.bought := coalesce((v_bought ->> v_row.buyer)::bigint, v_row.bought);
                v_why := case
                    when v_row.submitted_at < v_row.opens_at then 'not_open'
                    when v_row.submitted_at >= v_row.closes_at then 'closed'
                    when v_row.bought + v_row.quantity > v_row.per_user_limit then 'purchase_limit'
                    when v_row.quantity > v_row.remaining then 'sold_out'
                end;
                if v_why is null then
                    v_left := v_left || jsonb_build_object(v_row.sale_id, v_row.remaining - v_row.quantity);
                    if v_row.per_user_limit is not null then
                        v_bought := v_bought || jsonb_build_object(v_row.buyer, v_row.bought + v_row.quantity);
                    end if;
                else
                    v_refused := array_append(v_refused, v_row.order_id);
                    v_outcomes := array_append(v_outcomes, case v_why when 'sold_out' then 'sold_out' else 'rejected' end);
                    v_reasons := array_append(v_reasons, nullif(v_why, 'sold_out'));
                end if;
            end loop;
            update decisions d set outcome = r.outcome, reason = r.reason
            from unnest(v_refused, v_outcomes, v_reasons) as r (order_id, outcome, reason)
            where d.order_id = r.order_id;
        end if;

        with wanted as (
            select i.sale_id, sum(i.quantity) as units
            from unnest(p_order_ids, p_sale_ids, p_quantities, p_outcomes)
                as i (order_id, sale_id, quantity, outcome)
            where i.outcome = 'created' and (v_known is null or i.order_id <> all (v_known))
              and (v_tight is null or i.order_id <> all (v_refused))
            group by i.sale_id
        )
        update sales s set sold = s.sold + w.units,
            sold_out_at = case when s.sold + w.units = s.stock then p_decided_at end
        from wanted w where s.sale_id = w.sale_id;

        insert into buyers as b (sale_id, user_id, units, unit_limit)
        select i.sale_id, i.user_id, sum(i.quantity), s.per_user_limit
        from unnest(p_order_ids, p_sale_ids, p_user_ids, p_quantities, p_outcomes)
            as i (order_id, sale_id, user_id, quantity, outcome)
        join sales s using (sale_id)
        where s.per_user_limit is not null
          and i.outcome = 'created' and (v_known is null or i.order_id <> all (v_known))
          and (v_tight is null or i.order_id <> all (v_refused))
        group by i.sale_id, i.user_id, s.per_user_limit
        on conflict (sale_id, user_id) do update set units = b.units + excluded.units;
    end if;

    if v_known is not null or v_tight is not null then
        return query
        select i.place, i.order_id = any (coalesce(v_known, '{}')), d.sale_id, d.user_id, d.quantity,
               d.outcome, d.reason, d.decided_at, s.sold, s.version
        from unnest(p_order_ids, p_sale_ids) with ordinality as i (order_id, sale_id, place)
        join decisions d using (order_id)
        left join sales s on s.sale_id = i.sale_id
        where i.order_id = any (v_known) or i.order_id = any (v_refused)
        order by i.place;
    end if;

    if 'created' = any (p_outcomes) then
        return query
        select 0::bigint, null::boolean, s.sale_id, null::text, null::integer, null::text, null::text,
               s.sold_out_at, s.sold, s.version
        from sales s
        where s.sold_out_at is not null and s.sale_id in (
            select i.sale_id from unnest(p_sale_ids, p_outcomes) as i (sale_id, outcome)
            where i.outcome = 'created');
    end if;
end
$$;
