// Ships what was sold: processes the event of each order once.
//
//     java -cp "$JARS" Subscriber.java
//
// AMQP_URL and JDBC_URL (PostgreSQL) name the servers, EXCHANGE the exchange (floodgate.events).

import com.rabbitmq.client.*;
import java.io.IOException;
import java.sql.*;
import java.util.*;
import java.util.concurrent.*;

public class Subscriber {
    static final Map<String, String> ENV = System.getenv();
    static final String EXCHANGE = ENV.getOrDefault("EXCHANGE", "floodgate.events");
    static final String QUEUE = ENV.getOrDefault("QUEUE", "shipping");
    static final String TABLES = "create table if not exists inbox (event_id text primary key);"
        + "create table if not exists shipments (sale_id text, order_id text, user_id text, quantity int)";
    // Does what the event asks for, unless that was done before. It is one statement, and so one transaction.
    static final String SHIP = "with seen as (insert into inbox values (?) on conflict do nothing returning 1)"
        + " insert into shipments select d->>'sale_id', d->>'order_id', d->>'user_id', (d->>'quantity')::int"
        + " from (select ?::jsonb as d) event, seen";

    public static void main(String[] arguments) throws Exception {
        var factory = new ConnectionFactory();
        factory.setUri(ENV.get("AMQP_URL"));
        factory.setAutomaticRecoveryEnabled(false); // The loop connects again, whichever server was away.
        while (true) {
            try (var database = DriverManager.getConnection(ENV.get("JDBC_URL"));
                    var connection = factory.newConnection()) {
                database.createStatement().execute(TABLES);
                consume(database.prepareStatement(SHIP), connection.createChannel()).get();
            } catch (SQLException | IOException | TimeoutException | ExecutionException error) {
                System.err.println("trying again: " + error);
            }
            Thread.sleep(1000);
        }
    }

    static Future<Void> consume(PreparedStatement ship, Channel channel) throws IOException {
        var ended = new CompletableFuture<Void>();
        channel.addShutdownListener(ended::completeExceptionally);
        channel.queueDeclare(QUEUE, true, false, false, Map.of("x-queue-type", "quorum"));
        channel.queueBind(QUEUE, EXCHANGE, "order.created.*");
        channel.basicQos(100);
        channel.basicConsume(QUEUE, false, (tag, message) -> {
            try {
                ship.setString(1, message.getProperties().getMessageId());
                ship.setString(2, new String(message.getBody(), "UTF-8"));
                ship.executeUpdate();
                // Only now: what is not acknowledged comes again.
                channel.basicAck(message.getEnvelope().getDeliveryTag(), false);
            } catch (SQLException error) {
                ended.completeExceptionally(error);
            }
        }, tag -> ended.completeExceptionally(new IOException("the queue is gone")));
        return ended;
    }
}
