"""Ships what was sold, as a webhook tells: processes the event of each order once.

SECRETS are those that floodgate has shown when the webhook was registered, or when another one was made, separated by
spaces; DATABASE_URL names PostgreSQL, PORT is where it listens on this machine (8000).
"""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg
from standardwebhooks import Webhook, WebhookVerificationError

MAX_BYTES = 64 * 1024
TABLES = """
    create table if not exists inbox (event_id text primary key);
    create table if not exists shipments (sale_id text, order_id text, user_id text, quantity int)"""
SECRETS = [Webhook(secret) for secret in os.environ["SECRETS"].split()]


def verified(body, headers):
    """The event, if it is from floodgate."""
    for number, webhook in enumerate(SECRETS, start=1):
        try:
            return webhook.verify(body, headers)
        except WebhookVerificationError:
            if number == len(SECRETS):
                raise


def process(database, event):
    """Does what the event asks for, unless that was done before. Both stand in one transaction."""
    with database.transaction():
        seen = "insert into inbox (event_id) values (%s) on conflict do nothing"
        if database.execute(seen, [event["id"]]).rowcount == 0:
            return
        if event["type"] == "dev.floodgate.order.created.v1":
            ship = "insert into shipments values (%(sale_id)s, %(order_id)s, %(user_id)s, %(quantity)s)"
            database.execute(ship, event["data"])


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(min(int(self.headers.get("content-length", 0)), MAX_BYTES))
        try:
            event = verified(body, dict(self.headers))
        except WebhookVerificationError as error:
            return self.send_error(400, str(error))
        # If this fails there is no answer, and the event comes again.
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as database:
            process(database, event)
        self.send_response(204)
        self.end_headers()


with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as database:
    database.execute(TABLES)
ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Receiver).serve_forever()
