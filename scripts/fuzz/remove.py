"""Deletes a namespace's queues and exchanges from RabbitMQ. Usage: remove.py URL NAMESPACE"""

import sys

import pika

url, namespace = sys.argv[1:]
names = [f"{namespace}.{name}" for name in ("intents", "returned", "dead", "events")]
names += [f"{namespace}.delay.{ms}" for ms in (1000, 5000, 30000)]
channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
for name in names:
    # What is not there is deleted without a word.
    channel.queue_delete(name)
    channel.exchange_delete(name)
