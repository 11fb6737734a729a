// Posts orders of a sale and waits until RabbitMQ has each of them.
//
//     java -cp "$JARS" Producer.java SALE < orders.jsonl    one intent a line
//
// AMQP_URL names the server, EXCHANGE the exchange (floodgate.intents).

import static java.nio.charset.StandardCharsets.UTF_8;

import com.rabbitmq.client.*;
import java.io.*;
import java.util.Optional;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicBoolean;

public class Producer {
    static final String EXCHANGE = Optional.ofNullable(System.getenv("EXCHANGE")).orElse("floodgate.intents");
    static final int AT_ONCE = 500;

    public static void main(String[] arguments) throws Exception {
        var orders = new BufferedReader(new InputStreamReader(System.in, UTF_8)).lines().toList();
        var factory = new ConnectionFactory();
        factory.setUri(System.getenv("AMQP_URL"));
        // The loop below connects again, and sends again what was not confirmed.
        factory.setAutomaticRecoveryEnabled(false);
        var properties = new AMQP.BasicProperties.Builder().contentType("application/json").deliveryMode(2).build();
        for (int sent = 0; sent < orders.size(); ) {
            try (var connection = factory.newConnection(); var channel = connection.createChannel()) {
                var returned = new AtomicBoolean();
                channel.addReturnListener(message -> returned.set(true));
                channel.confirmSelect();
                while (sent < orders.size()) {
                    var together = orders.subList(sent, Math.min(sent + AT_ONCE, orders.size()));
                    for (var order : together) {
                        channel.basicPublish(EXCHANGE, arguments[0], true, properties, order.getBytes(UTF_8));
                    }
                    channel.waitForConfirmsOrDie(10_000);
                    if (returned.get()) throw new IOException("no queue takes orders");
                    sent += together.size();
                }
            } catch (IOException | TimeoutException | ShutdownSignalException error) {
                // Which of them arrived is unknown. They are sent again: an order is known by its sale and its id.
                System.err.println("not confirmed, trying again: " + error);
                Thread.sleep(1000);
            }
        }
    }
}
