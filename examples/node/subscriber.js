// Ships what was sold: processes the event of each order once.
//
// AMQP_URL and DATABASE_URL (PostgreSQL) name the servers, EXCHANGE the exchange (floodgate.events).

import { setTimeout as sleep } from 'node:timers/promises';
import amqp from 'amqplib';
import pg from 'pg';

const { AMQP_URL, DATABASE_URL, EXCHANGE = 'floodgate.events', QUEUE = 'shipping' } = process.env;
const TABLES = `
  create table if not exists inbox (event_id text primary key);
  create table if not exists shipments (sale_id text, order_id text, user_id text, quantity int)`;
const SEEN = 'insert into inbox (event_id) values ($1) on conflict do nothing';
const SHIP = 'insert into shipments values ($1, $2, $3, $4)';

// Does what the event asks for, unless that was done before. Both stand in one transaction.
async function handle(database, { properties, content }) {
  await database.query('begin');
  const { rowCount } = await database.query(SEEN, [properties.messageId]);
  if (rowCount > 0) {
    const { sale_id, order_id, user_id, quantity } = JSON.parse(content);
    await database.query(SHIP, [sale_id, order_id, user_id, quantity]);
  }
  await database.query('commit');
}

async function consume(database, connection) {
  const channel = await connection.createChannel();
  await channel.assertQueue(QUEUE, { durable: true, arguments: { 'x-queue-type': 'quorum' } });
  await channel.bindQueue(QUEUE, EXCHANGE, 'order.created.*');
  await channel.prefetch(100);
  let last = Promise.resolve();
  await new Promise((_, reject) => {
    for (const source of [connection, channel, database]) source.on('error', reject);
    channel.on('close', () => reject(new Error('closed')));
    channel.consume(QUEUE, (message) => {
      // One after the other. Acknowledged only then: what is not acknowledged comes again.
      last = last.then(() => handle(database, message)).then(() => channel.ack(message));
      last.catch(reject);
    }).catch(reject);
  });
}

while (true) {
  const database = new pg.Client({ connectionString: DATABASE_URL });
  let connection;
  try {
    await database.connect();
    await database.query(TABLES);
    connection = await amqp.connect(AMQP_URL);
    await consume(database, connection);
  } catch (error) {
    console.error(`trying again: ${error.message}`);
  }
  await Promise.allSettled([connection?.close(), database.end()]);
  await sleep(1000);
}
