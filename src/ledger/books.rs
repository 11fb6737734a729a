//! Balancing the ledger's books: each a query for what can't be right. The same in every database but for
//! the time of an order.

use super::row::row;
use super::rows::DecisionRow;
use super::statements::{DECISION, Sql};
use super::{Balance, Book, Discrepancy, MAX_DISCREPANCIES};
use crate::domain::decision::Decision;
use crate::domain::order::{OrderId, SaleId};

row! {
    /// What a book's query gives.
    struct Found {
        sale_id: String,
        about: String,
        detail: String,
    }
}

row! {
    struct Total {
        total: i64,
    }
}

/// The stock that a sale had in each range of its versions: at first, and from each restock on.
fn levels(of: &str) -> String {
    format!(
        "restocks as (select sale_id, version, stock, units from announcements where units is not null and {of}),
    levels as (
        select sale_id, version as since,
               lead(version) over (partition by sale_id order by version) as until, stock
        from restocks
        union all
        select s.sale_id, 0, (select min(r.version) from restocks r where r.sale_id = s.sale_id),
               s.stock - coalesce((select sum(r.units) from restocks r where r.sale_id = s.sale_id), 0)
        from sales s where s.{of}
    )"
    )
}

/// The query of a book, on the rows of sales for which `of` holds, a condition on `sale_id`. `ms` writes a
/// time as milliseconds since 1970.
fn query(book: Book, of: &str, ms: fn(&str) -> String) -> String {
    match book {
        Book::Sales => sales(of),
        Book::Stock => stock(of),
        Book::Sold => sold(of),
        Book::Buyers => buyers(of),
        Book::SoldOut => sold_out(of),
        Book::PurchaseLimit => purchase_limit(of),
        Book::Restocks => restocks(of),
        Book::Window => window(of, ms),
    }
}

fn created(of: &str) -> String {
    format!("(select * from decisions where outcome = 'c' and {of})")
}

/// Rows of sales that are not there.
fn sales(of: &str) -> String {
    format!(
        "select sale_id, kind || ' ' || about as about, 'belongs to a sale that is not there' as detail
         from (select sale_id, 'order' as kind, order_id as about from decisions where {of}
               union all select sale_id, 'buyer', user_id from buyers where {of}
               union all select sale_id, 'announcement', adjustment_id from announcements where {of}
               union all select sale_id, 'archived orders from', first_order from archived_orders where {of}) x
         where not exists (select 1 from sales s where s.sale_id = x.sale_id and s.{of})"
    )
}

/// Sales that have sold more than they had, or say wrongly that they are sold out; orders created when too little
/// was left.
fn stock(of: &str) -> String {
    let (created, levels) = (created(of), levels(of));
    format!(
        "with {levels}
         select s.sale_id, 'sale' as about,
                s.sold || ' of ' || s.stock || ' units are sold' as detail
         from sales s where s.{of} and not s.sold between 0 and s.stock
         union all
         select s.sale_id, 'sale', 'sold_out_at is ' || case when s.sold_out_at is null
                then 'missing' else 'set' end || ' with ' || (s.stock - s.sold) || ' units left'
         from sales s where s.{of} and s.stock > 0 and (s.sold = s.stock) <> (s.sold_out_at is not null)
         union all
         select d.sale_id, 'order ' || d.order_id,
                'was created for ' || d.quantity || ' units when ' || (l.stock - d.sold) || ' were left'
         from {created} d join levels l on l.sale_id = d.sale_id
              and d.version >= l.since and (l.until is null or d.version < l.until)
         where l.stock - d.sold < d.quantity"
    )
}

/// Sales whose created orders, archived ones too, do not come to what they have sold, and decisions that saw
/// counters which can not have been. What one order saw after the others is not known of an archived sale.
fn sold(of: &str) -> String {
    let created = created(of);
    let all = format!(
        "(select sale_id, quantity from {created} d
          union all select sale_id, units from archived_orders where {of})"
    );
    format!(
        "with c as (
            select sale_id, order_id, sold, version, coalesce(sum(quantity) over before, 0) as expected,
                   lag(version) over before as earlier
            from {created} d
            window before as (partition by sale_id order by sold, order_id
                              rows between unbounded preceding and 1 preceding))
         select s.sale_id, 'sale' as about, 'has sold ' || s.sold || ' units, its created orders have '
                || coalesce(t.units, 0) as detail
         from sales s left join (select sale_id, sum(quantity) as units from {all} d group by sale_id) t
              on t.sale_id = s.sale_id
         where s.{of} and s.sold <> coalesce(t.units, 0)
         union all
         select sale_id, 'order ' || order_id,
                'was created after ' || sold || ' units, the orders before it have ' || expected
         from c where sold <> expected and sale_id in (select s.sale_id from sales s where not s.archived)
         union all
         select sale_id, 'order ' || order_id,
                'was created at version ' || version || ', after one at version ' || earlier
         from c where earlier > version
         union all
         select d.sale_id, 'order ' || d.order_id, 'saw version ' || d.version || ' and ' || d.sold
                || ' units sold; the sale has version ' || s.version || ' and ' || s.sold
         from decisions d join sales s on s.sale_id = d.sale_id
         where d.{of} and s.{of} and (d.version > s.version or d.sold > s.sold)"
    )
}

/// Buyers whose units are not those of their created orders, or exceed the limit. An archived order counts for
/// none: its units left with it.
fn buyers(of: &str) -> String {
    let created = created(of);
    format!(
        "select x.sale_id, 'buyer ' || x.user_id as about,
                'is counted with ' || x.units || ' units, has ' || x.bought || ', may have '
                || coalesce(s.per_user_limit, x.units) as detail
         from (select coalesce(b.sale_id, c.sale_id) as sale_id, coalesce(b.user_id, c.user_id) as user_id,
                      coalesce(b.units, 0) as units, coalesce(c.bought, 0) as bought
               from (select * from buyers where {of}) b
               full join (select d.sale_id, d.user_id, sum(d.quantity) as bought from {created} d
                          join sales s on s.sale_id = d.sale_id
                          where s.{of} and s.per_user_limit is not null group by d.sale_id, d.user_id) c
                    on c.sale_id = b.sale_id and c.user_id = b.user_id) x
         join sales s on s.sale_id = x.sale_id
         where s.{of} and (x.units <> x.bought or x.bought > s.per_user_limit)"
    )
}

/// Refusals for want of units that were left.
fn sold_out(of: &str) -> String {
    let levels = levels(of);
    format!(
        "with {levels}
         select d.sale_id, 'order ' || d.order_id as about,
                'was refused ' || d.quantity || ' units as sold out when ' || (l.stock - d.sold)
                || ' were left' as detail
         from decisions d join levels l on l.sale_id = d.sale_id
              and d.version >= l.since and (l.until is null or d.version < l.until)
         where d.outcome = 's' and d.{of} and l.stock - d.sold >= d.quantity"
    )
}

/// Refusals by a limit that was not reached, and creations beyond it. Of an archived sale not all orders of a buyer
/// are there to tell.
fn purchase_limit(of: &str) -> String {
    format!(
        "select d.sale_id, 'order ' || d.order_id as about,
                case d.outcome when 'c' then 'was created' else 'was refused by the limit' end
                || ' for ' || d.quantity || ' units when its buyer had ' || d.held || ' of '
                || coalesce(cast(s.per_user_limit as text), 'any number') as detail
         from (select sale_id, order_id, quantity, outcome,
                      coalesce(sum(case outcome when 'c' then quantity else 0 end) over (
                          partition by sale_id, user_id order by sold
                          range between unbounded preceding and 1 preceding), 0) as held
               from decisions where outcome in ('c', 'l') and {of}) d
         join sales s on s.sale_id = d.sale_id
         where s.{of} and not s.archived and case d.outcome when 'c' then d.held + d.quantity > s.per_user_limit
               else s.per_user_limit is null or d.held + d.quantity <= s.per_user_limit end"
    )
}

/// Restocks that do not come to what is on offer.
fn restocks(of: &str) -> String {
    format!(
        "with r as (
            select sale_id, adjustment_id, version, units, stock,
                   lag(stock) over (partition by sale_id order by version) as before,
                   lead(version) over (partition by sale_id order by version) as later
            from announcements where units is not null and {of})
         select sale_id, 'restock ' || adjustment_id as about,
                'of ' || units || ' units makes ' || stock || ' of ' || before as detail
         from r where stock <> before + units
         union all
         select r.sale_id, 'restock ' || r.adjustment_id,
                'leaves ' || r.stock || ' units on offer at version ' || r.version || '; the sale has '
                || s.stock || ' at version ' || s.version
         from r join sales s on s.sale_id = r.sale_id
         where s.{of} and r.later is null and (r.stock <> s.stock or r.version > s.version)"
    )
}

/// Orders that were refused, or created, by the sale's window, or by a pause as far as the latest version
/// tells. A closing may have moved since an order was created, but never to a later time. Times in the database
/// may be finer than an order's milliseconds.
fn window(of: &str, ms: fn(&str) -> String) -> String {
    let (decided, opens, closes) = (ms("d.decided_at"), ms("s.opens_at"), ms("s.closes_at"));
    format!(
        "select x.sale_id, 'order ' || x.order_id as about,
                case x.outcome when 'n' then 'was refused as too early' when 'x' then 'was refused as too late'
                else 'was created' end || ', at ' || x.submitted || ' ms; open from '
                || coalesce(cast(x.opens as text), 'ever') || ' to ' || coalesce(cast(x.closes as text), 'ever')
                as detail
         from (select d.sale_id, d.order_id, d.outcome, d.version, s.version as latest,
                      {decided} - d.waited_ms as submitted, {opens} as opens, {closes} as closes
               from decisions d join sales s on s.sale_id = d.sale_id
               where d.outcome in ('c', 'n', 'x') and d.waited_ms < 2147483647 and d.{of} and s.{of}) x
         where case x.outcome
             when 'n' then x.opens is null or x.submitted > x.opens
             when 'x' then x.closes is null or x.submitted < x.closes - 1
             else x.submitted < x.opens - 1 or x.version = x.latest and x.submitted > x.closes end
         union all
         select d.sale_id, 'order ' || d.order_id,
                case d.outcome when 'p' then 'was refused as paused' else 'was decided' end || ' at version '
                || d.version || ', which ' || case s.paused when 'refuse' then 'refuses orders'
                when 'hold' then 'holds orders' when 'restored' then 'holds orders' else 'is not paused' end
         from decisions d join sales s on s.sale_id = d.sale_id and s.version = d.version
         where d.{of} and s.{of} and case d.outcome when 'p' then coalesce(s.paused, '') <> 'refuse'
               when 'c' then s.paused is not null when 's' then s.paused is not null
               when 'l' then s.paused is not null else coalesce(s.paused, '') in ('hold', 'restored') end"
    )
}

/// A condition on the column `sale_id`.
fn of(sale: Option<&SaleId>) -> String {
    // An id has no character that means anything in SQL.
    sale.map_or_else(|| "sale_id is not null".to_owned(), |sale| format!("sale_id = '{sale}'"))
}

/// Balances every book. To be called in a transaction that sees one moment.
pub(super) async fn balance<C: Sql>(
    db: &mut C,
    sale: Option<&SaleId>,
    ms: fn(&str) -> String,
) -> Result<Balance, sqlx::Error> {
    let of = of(sale);
    let mut discrepancies = Vec::new();
    // One more than is shown tells that there are more.
    let most = MAX_DISCREPANCIES + 1;
    for book in Book::ALL {
        let sql = format!(
            "select sale_id, about, detail from ({}) q order by sale_id, about limit cast($1 as integer)",
            query(book, &of, ms)
        );
        let found: Vec<Found> = db.read(sql, most.to_string()).await?;
        discrepancies.extend(
            found.into_iter().map(|Found { sale_id, about, detail }| Discrepancy {
                book,
                sale_id,
                about,
                detail,
            }),
        );
    }
    let sales = total(db, "count(*)", "sales", &of).await?;
    let archived = total(db, "sum(decisions)", "archived_orders", &of).await?;
    let decisions = total(db, "count(*)", "decisions", &of).await? + archived;
    Ok(Balance { sales, decisions, discrepancies })
}

async fn total<C: Sql>(db: &mut C, what: &str, table: &str, of: &str) -> Result<u64, sqlx::Error> {
    let sql = format!("select coalesce({what}, 0) as total from {table} where {of} and $1 = ''");
    let rows: Vec<Total> = db.read(sql, String::new()).await?;
    Ok(rows.first().map_or(0, |row| row.total.cast_unsigned()))
}

/// Decisions of a sale after `after`, by order id.
pub(super) async fn decided<C: Sql>(
    db: &mut C,
    sale: &SaleId,
    after: Option<&OrderId>,
    limit: u32,
) -> Result<Vec<Decision>, sqlx::Error> {
    let sql = format!(
        "select {DECISION} from decisions d
         where sale_id = '{sale}' and order_id > $1 order by order_id limit {limit}"
    );
    // Nothing is before the empty text.
    let after = after.map_or("", OrderId::as_str).to_owned();
    let rows: Vec<DecisionRow> = db.read(sql, after).await?;
    rows.into_iter().map(Decision::try_from).collect()
}
