"""Posts orders and waits until RabbitMQ has each of them.

    producer.py < orders.jsonl    one intent a line: {"order_id": …, "sale_id": …, "user_id": …, "quantity": …}

AMQP_URL names the server, EXCHANGE the exchange (floodgate.intents).
"""

import itertools
import json
import os
import sys
import time

import pika
from pika.exceptions import AMQPError

EXCHANGE = os.environ.get("EXCHANGE", "floodgate.intents")
MAX_PER_MESSAGE = 100


def messages(orders):
    """The orders of each sale, as many together as fit into a message."""
    for sale_id, of_sale in itertools.groupby(orders, key=lambda order: order["sale_id"]):
        while chunk := list(itertools.islice(of_sale, MAX_PER_MESSAGE)):
            yield sale_id, chunk


def publish(channel, sale_id, orders):
    """Returns when RabbitMQ has taken charge of the message, and raises an error when it has not."""
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
    channel.basic_publish(EXCHANGE, sale_id, json.dumps(orders), properties, mandatory=True)


def main():
    waiting = list(messages(map(json.loads, sys.stdin)))
    sent = 0
    while sent < len(waiting):
        try:
            with pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])) as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                while sent < len(waiting):
                    publish(channel, *waiting[sent])
                    sent += 1
        except AMQPError as error:
            # Whether the last message arrived is unknown. It is sent again: an order is known by its sale and its id.
            print(f"not confirmed, trying again: {error!r}", file=sys.stderr)
            time.sleep(1)


main()
