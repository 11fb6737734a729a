"""A worker as many shops have one, to compare with: aio-pika, asyncpg, and a transactional outbox.

Takes intents from a queue, decides each in one transaction, with the sale's row locked, and writes its event to
an outbox in the same transaction; then acknowledges. A relay publishes what is in the outbox, with confirms, and
deletes it. Guarantees: no oversell, one decision for each order, and every event at least once.

    python3 outbox.py AMQP_URL DATABASE_URL QUEUE EVENTS_EXCHANGE
"""

import asyncio
import json
import signal
import sys
from datetime import datetime, timezone

import aio_pika
import asyncpg

CONSUMERS = 16
OUTBOX_BATCH = 500


def event(order, outcome, decided_at):
    return {
        "order_id": order["order_id"],
        "sale_id": order["sale_id"],
        "user_id": order["user_id"],
        "quantity": order["quantity"],
        "outcome": outcome,
        "decided_at": decided_at,
    }


async def decide(connection, order):
    """Decides an order, once for ever."""
    key = (order["sale_id"], order["order_id"])
    async with connection.transaction():
        left = await connection.fetchval(
            "select stock - sold from peer_sales where sale_id = $1 for update", order["sale_id"]
        )
        outcome = "created" if left >= order["quantity"] else "sold_out"
        new = await connection.fetchval(
            """insert into peer_orders (sale_id, order_id, user_id, quantity, outcome)
               values ($1, $2, $3, $4, $5) on conflict do nothing returning outcome""",
            *key, order["user_id"], order["quantity"], outcome,
        )
        if new == "created":
            await connection.execute(
                "update peer_sales set sold = sold + $2 where sale_id = $1",
                order["sale_id"], order["quantity"],
            )
        if new is None:
            outcome = await connection.fetchval(
                "select outcome from peer_orders where sale_id = $1 and order_id = $2", *key
            )
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        await connection.execute(
            "insert into peer_outbox (routing_key, body) values ($1, $2)",
            f"order.{outcome}.{order['sale_id']}", json.dumps(event(order, outcome, now)),
        )


async def consume(messages, pool):
    while True:
        message = await messages.get()
        async with pool.acquire() as connection:
            await decide(connection, json.loads(message.body))
        await message.ack()


async def relay(exchange, pool):
    async with pool.acquire() as connection:
        while True:
            rows = await connection.fetch(
                "select id, routing_key, body from peer_outbox order by id limit $1", OUTBOX_BATCH
            )
            if not rows:
                await asyncio.sleep(0.01)
                continue
            await asyncio.gather(*(
                exchange.publish(
                    aio_pika.Message(row["body"].encode(), delivery_mode=2, content_type="application/json"),
                    routing_key=row["routing_key"], mandatory=False,
                )
                for row in rows
            ))
            await connection.execute(
                "delete from peer_outbox where id = any($1::bigint[])", [row["id"] for row in rows]
            )


async def main(amqp_url, database_url, queue_name, exchange_name):
    pool = await asyncpg.create_pool(database_url, min_size=CONSUMERS + 1, max_size=CONSUMERS + 1)
    broker = await aio_pika.connect(amqp_url)
    channel = await broker.channel(publisher_confirms=False)
    await channel.set_qos(prefetch_count=1000)
    confirming = await broker.channel(publisher_confirms=True)
    exchange = await confirming.get_exchange(exchange_name)
    queue = await channel.get_queue(queue_name)
    messages = asyncio.Queue()
    await queue.consume(messages.put)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tasks = [asyncio.create_task(consume(messages, pool)) for _ in range(CONSUMERS)]
    tasks.append(asyncio.create_task(relay(exchange, pool)))
    await stop.wait()
    for task in tasks:
        task.cancel()
    await broker.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
