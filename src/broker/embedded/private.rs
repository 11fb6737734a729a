//! Queues of one consumer, in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::routing::Binding;
use super::store::Row;
use crate::broker::Topic;

/// Messages that a queue holds for a consumer that is slow; the oldest go first.
const MAX_LENGTH: usize = 100_000;

/// The private queues of a broker, by name.
#[derive(Debug, Default)]
pub(super) struct PrivateQueues(Mutex<HashMap<String, Arc<PrivateQueue>>>);

/// One of them.
#[derive(Debug)]
pub(super) struct PrivateQueue {
    name: String,
    content: Mutex<Content>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Content {
    bindings: Vec<Binding>,
    consumers: usize,
    last_position: i64,
    waiting: BTreeMap<i64, Row>,
    unsettled: BTreeMap<i64, Row>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl PrivateQueues {
    /// The queue called `name`, made if it isn't there, with one more consumer.
    pub(super) fn join(&self, name: &str, topics: &[Topic<'_>]) -> Arc<PrivateQueue> {
        let mut queues = locked(&self.0);
        let queue = queues.entry(name.to_owned()).or_insert_with(|| {
            let (content, news) = (Mutex::default(), Notify::new());
            Arc::new(PrivateQueue { name: name.to_owned(), content, news })
        });
        let mut content = locked(&queue.content);
        content.consumers += 1;
        content.bindings.extend(topics.iter().map(|&topic| Binding::to(topic)));
        drop(content);
        queue.clone()
    }

    /// The queue is gone with its last consumer.
    pub(super) fn leave(&self, queue: &PrivateQueue) {
        let mut queues = locked(&self.0);
        let mut content = locked(&queue.content);
        content.consumers -= 1;
        if content.consumers == 0 {
            queues.remove(&queue.name);
        }
    }

    pub(super) fn named(&self, name: &str) -> Option<Arc<PrivateQueue>> {
        locked(&self.0).get(name).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<PrivateQueue>> {
        locked(&self.0).values().cloned().collect()
    }
}

impl PrivateQueue {
    /// Whether it gets what is published to `topic`.
    pub(super) fn takes(&self, topic: Topic<'_>) -> bool {
        locked(&self.content).bindings.iter().any(|binding| binding.takes(topic))
    }

    /// Puts a message at the end. Its position is given here.
    pub(super) fn push(&self, row: Row) {
        let mut content = locked(&self.content);
        if content.waiting.len() == MAX_LENGTH {
            content.waiting.pop_first();
        }
        content.last_position += 1;
        let position = content.last_position;
        content.waiting.insert(position, Row { position, ..row });
        self.news.notify_one();
    }

    /// Messages waiting.
    pub(super) fn depth(&self) -> usize {
        locked(&self.content).waiting.len()
    }

    /// The next messages, up to `most`; waits for one. Dropping the future takes none.
    pub(super) async fn take(&self, most: usize) -> Vec<Row> {
        loop {
            let taken = self.take_waiting(most);
            if !taken.is_empty() {
                return taken;
            }
            self.news.notified().await;
        }
    }

    fn take_waiting(&self, most: usize) -> Vec<Row> {
        let mut content = locked(&self.content);
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((position, row)) = content.waiting.pop_first()
        {
            content.unsettled.insert(position, row.clone());
            taken.push(row);
        }
        if !content.waiting.is_empty() {
            // For another consumer that waits.
            self.news.notify_one();
        }
        taken
    }

    pub(super) fn settle(&self, acked: &[i64], returned: &[i64]) {
        let mut content = locked(&self.content);
        for position in acked {
            content.unsettled.remove(position);
        }
        for position in returned {
            if let Some(row) = content.unsettled.remove(position) {
                content.waiting.insert(*position, Row { redelivered: true, ..row });
                self.news.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Properties;

    fn row(n: usize) -> Row {
        let (body, properties) = (n.to_string().into_bytes(), Properties::default());
        Row { position: 0, body, properties, redelivered: false }
    }

    #[tokio::test]
    async fn the_oldest_messages_go_first_and_the_queue_with_its_last_consumer() {
        let queues = PrivateQueues::default();
        let queue = queues.join("q", &[Topic::Events("order.*")]);
        for n in 0..MAX_LENGTH + 2 {
            queue.push(row(n));
        }
        assert_eq!(queue.depth(), MAX_LENGTH);
        let taken = queue.take(2).await;
        assert_eq!([&taken[0].body, &taken[1].body], [b"2", b"3"]);
        assert!(!taken[0].redelivered);
        queue.settle(&[taken[1].position], &[taken[0].position]);
        let again = queue.take(1).await.remove(0);
        assert_eq!((again.body.as_slice(), again.redelivered), (b"2".as_slice(), true));
        assert!(
            queue.takes(Topic::Events("order.created"))
                && !queue.takes(Topic::Events("sale.created"))
        );
        queues.join("q", &[]);
        queues.leave(&queue);
        assert!(queues.named("q").is_some());
        queues.leave(&queue);
        assert!(queues.named("q").is_none());
    }
}
