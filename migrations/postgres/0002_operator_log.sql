-- Who did what to which sale, when, and from where. See src/operator_log/mod.rs.
--
-- Rows are only ever added. An id is a UUID of version 7 made by the process, so ids are in the order of
-- their times. No order touches this table, so the sale is not first in its key.

create table operator_log (
    at         timestamptz      not null,
    id         text collate "C" primary key,
    actor      text             not null,
    -- opened, restocked, closed, verification_switched, redriven, purged, or, of refused requests,
    -- token_refused, forbidden.
    action     text             not null,
    sale_id    text collate "C",
    detail     text             not null,
    -- The client's address, or cli.
    origin     text             not null,
    request_id text,
    constraint operator_log_bounded check (
        char_length(id) = 36 and char_length(actor) <= 128 and char_length(action) <= 32
        and char_length(sale_id) <= 64 and char_length(detail) <= 512 and char_length(origin) <= 64
        and char_length(request_id) <= 128
    )
);

create index operator_log_of_sale on operator_log (sale_id, id) where sale_id is not null;
