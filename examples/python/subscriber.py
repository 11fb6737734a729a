"""Ships what was sold: processes the event of each order once.

AMQP_URL and DATABASE_URL (PostgreSQL) name the servers, EXCHANGE the exchange (floodgate.events).
"""

import os
import sys
import time

import pika
import psycopg
from cloudevents.core.bindings.amqp import AMQPMessage, from_amqp_event
from pika.exceptions import AMQPError

EXCHANGE = os.environ.get("EXCHANGE", "floodgate.events")
QUEUE = os.environ.get("QUEUE", "shipping")
TABLES = """
    create table if not exists inbox (event_id text primary key);
    create table if not exists shipments (sale_id text, order_id text, user_id text, quantity int)"""


def process(database, event):
    """Does what the event asks for, unless that was done before. Both stand in one transaction."""
    with database.transaction():
        seen = "insert into inbox (event_id) values (%s) on conflict do nothing"
        if database.execute(seen, [event.get_id()]).rowcount == 0:
            return
        ship = "insert into shipments values (%(sale_id)s, %(order_id)s, %(user_id)s, %(quantity)s)"
        database.execute(ship, event.get_data())


def consume(database, channel):
    channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    channel.queue_bind(QUEUE, EXCHANGE, "order.created.*")
    channel.basic_qos(prefetch_count=100)
    for method, properties, body in channel.consume(QUEUE):
        message = AMQPMessage({"content-type": properties.content_type}, properties.headers, body)
        process(database, from_amqp_event(message))
        # Only now: what is not acknowledged comes again.
        channel.basic_ack(method.delivery_tag)


def main():
    while True:
        try:
            with (
                psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as database,
                pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])) as connection,
            ):
                database.execute(TABLES)
                consume(database, connection.channel())
        except (AMQPError, psycopg.OperationalError) as error:
            print(f"trying again: {error!r}", file=sys.stderr)
            time.sleep(1)


main()
