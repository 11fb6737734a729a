//! The queues that a worker consumes.

use crate::broker::{Broker, BrokerError, Deliveries, Delivery, Queue};

/// Deliveries of the queues that a worker consumes.
pub(super) struct Sources {
    returned: Deliveries,
    intents: Deliveries,
}

/// Which of the queues a delivery came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Deferred intents, whose delay has passed.
    Returned,
    /// New intents.
    Intents,
}

impl Sources {
    /// Consumes both queues: up to `prefetch` intents at a time, and half as many returned ones.
    pub(super) async fn consume(broker: &dyn Broker, prefetch: u16) -> Result<Self, BrokerError> {
        let returned = broker.consume(Queue::Returned, (prefetch / 2).max(1)).await?;
        let intents = broker.consume(Queue::Intents, prefetch).await?;
        Ok(Self { returned, intents })
    }

    /// The next delivery of either queue; waits for one. `None` after [`Sources::stop`], once all
    /// that had been handed over is taken. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<(Origin, Delivery)> {
        tokio::select! {
            biased;
            Some(delivery) = self.returned.next() => Some((Origin::Returned, delivery)),
            Some(delivery) = self.intents.next() => Some((Origin::Intents, delivery)),
            else => None,
        }
    }

    /// A delivery of one queue that is here already.
    pub(super) fn ready(&mut self, origin: Origin) -> Option<Delivery> {
        match origin {
            Origin::Returned => self.returned.ready(),
            Origin::Intents => self.intents.ready(),
        }
    }

    /// Takes no more from either queue.
    pub(super) fn stop(&self) {
        self.returned.stop();
        self.intents.stop();
    }

    /// Waits until all that was handed over is settled and the broker was told.
    pub(super) async fn finished(self) {
        tokio::join!(self.returned.finished(), self.intents.finished());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use futures_util::FutureExt;
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::broker::Properties;

    /// Sources without a broker, and where deliveries for them are put in: returned ones, intents.
    pub(in crate::worker) fn sources()
    -> (Sources, UnboundedSender<Delivery>, UnboundedSender<Delivery>) {
        let queue = || {
            let (hand_over, incoming) = unbounded_channel();
            let consumer = tokio::spawn(async {});
            (hand_over, Deliveries::new(incoming, CancellationToken::new(), consumer))
        };
        let ((to_returned, returned), (to_intents, intents)) = (queue(), queue());
        (Sources { returned, intents }, to_returned, to_intents)
    }

    pub(in crate::worker) fn delivery(body: &str) -> Delivery {
        Delivery::new(body.into(), Properties::default(), false, Box::new(|_| ()))
    }

    #[tokio::test]
    async fn returned_intents_come_first_and_the_end_comes_with_the_last_queue() {
        let (mut sources, to_returned, to_intents) = sources();
        assert!(sources.next().now_or_never().is_none());
        to_intents.send(delivery("new")).unwrap();
        to_returned.send(delivery("back")).unwrap();
        let (origin, first) = sources.next().await.unwrap();
        assert_eq!((origin, first.body.as_slice()), (Origin::Returned, b"back".as_slice()));
        drop(to_returned);
        let (origin, second) = sources.next().await.unwrap();
        assert_eq!((origin, second.body.as_slice()), (Origin::Intents, b"new".as_slice()));
        assert!(sources.next().now_or_never().is_none());
        drop(to_intents);
        assert!(sources.next().await.is_none());
    }
}
