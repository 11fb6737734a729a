-- Who did what to which sale, when, and from where. As PostgreSQL's table, with times as text.

create table operator_log (
    id         text primary key,
    at         text not null,
    actor      text not null,
    action     text not null,
    sale_id    text,
    detail     text not null,
    origin     text not null,
    request_id text,
    constraint operator_log_bounded check (
        length(id) = 36 and length(actor) <= 128 and length(action) <= 32
        and length(sale_id) <= 64 and length(detail) <= 512 and length(origin) <= 64
        and length(request_id) <= 128
    )
) strict, without rowid;

create index operator_log_of_sale on operator_log (sale_id, id) where sale_id is not null;
