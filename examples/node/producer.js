// Posts orders and waits until RabbitMQ has each of them.
//
//     node producer.js < orders.jsonl    one intent a line: {"order_id": …, "sale_id": …, "user_id": …, "quantity": …}
//
// AMQP_URL names the server, EXCHANGE the exchange (floodgate.intents).

import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import amqp from 'amqplib';

const { AMQP_URL, EXCHANGE = 'floodgate.intents' } = process.env;
const AT_ONCE = 500;

// Resolves when RabbitMQ has taken charge of the order, and rejects when it has not.
function publish(channel, order) {
  const options = { persistent: true, mandatory: true, contentType: 'application/json' };
  return new Promise((resolve, reject) => {
    // Without a connection there is neither a confirm nor a refusal.
    channel.once('close', () => reject(new Error('closed')));
    channel.publish(EXCHANGE, order.sale_id, Buffer.from(JSON.stringify(order)), options, (error) =>
      error ? reject(error) : resolve());
  });
}

const orders = readFileSync(0, 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line));
for (let sent = 0; sent < orders.length;) {
  let connection;
  try {
    connection = await amqp.connect(AMQP_URL);
    connection.on('error', () => {}); // 'close' follows.
    const channel = await connection.createConfirmChannel();
    channel.setMaxListeners(AT_ONCE + 10);
    channel.on('error', () => {});
    let returned = 0;
    channel.on('return', () => { returned += 1; });
    while (sent < orders.length) {
      const together = orders.slice(sent, sent + AT_ONCE);
      await Promise.all(together.map((order) => publish(channel, order)));
      if (returned > 0) throw new Error('no queue takes orders');
      sent += together.length;
      channel.removeAllListeners('close');
    }
  } catch (error) {
    // Which of them arrived is unknown. They are sent again: an order is known by its sale and its id.
    console.error(`not confirmed, trying again: ${error.message}`);
    await sleep(1000);
  }
  await connection?.close().catch(() => {});
}
