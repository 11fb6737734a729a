//! The language of topic exchanges (AMQP 0-9-1, section 3.1.3.3): a routing key is words between
//! dots; in the key of a binding `*` stands for one word and `#` for any number of them.

use crate::broker::Topic;
use crate::broker::topology::WORKER;

/// What a queue is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binding {
    /// `events`, `batches` or `status`.
    pub kind: String,
    /// Its pattern.
    pub routing_key: String,
}

impl Binding {
    pub(super) fn to(topic: Topic<'_>) -> Self {
        let (kind, routing_key) = parts(topic);
        Self { kind: kind.to_owned(), routing_key: routing_key.to_owned() }
    }

    /// Whether it takes a message that is published to `topic`, which has no pattern.
    pub(super) fn takes(&self, topic: Topic<'_>) -> bool {
        let (kind, routing_key) = parts(topic);
        self.kind == kind && matches(&self.routing_key, routing_key)
    }
}

/// The kind and the routing key of a topic.
pub(super) fn parts(topic: Topic<'_>) -> (&'static str, &str) {
    match topic {
        Topic::Events(routing_key) => ("events", routing_key),
        Topic::Batches(routing_key) => ("batches", routing_key),
        Topic::Status => ("status", WORKER),
    }
}

/// Whether a binding with `pattern` takes messages with routing key `key`.
fn matches(pattern: &str, key: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('.').collect();
    let key: Vec<&str> = key.split('.').collect();
    words_match(&pattern, &key)
}

fn words_match(pattern: &[&str], key: &[&str]) -> bool {
    match pattern.split_first() {
        None => key.is_empty(),
        Some((&"#", rest)) => (0..=key.len()).any(|skipped| words_match(rest, &key[skipped..])),
        Some((word, rest)) => key.split_first().is_some_and(|(first, others)| {
            (*word == "*" || word == first) && words_match(rest, others)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::{Binding, matches};
    use crate::broker::Topic;

    #[test]
    fn patterns_match_word_by_word() {
        for (pattern, key, expected) in [
            ("order.created.s", "order.created.s", true),
            ("order.created.s", "order.created.t", false),
            ("order.created", "order.created.s", false),
            ("order.*.s", "order.created.s", true),
            ("order.*", "order.created.s", false),
            ("*.*.*", "order.created.s", true),
            ("#", "order.created.s", true),
            ("order.#", "order", true),
            ("order.#", "orders.created", false),
            ("#.s", "order.created.s", true),
            ("#.created.#", "order.created.s", true),
            ("order.#.*", "order", false),
            ("order.#.*", "order.created.s", true),
            ("ord*", "order", false),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn events_and_batches_are_bound_to_apart() {
        let binding = Binding::to(Topic::Batches("#"));
        assert!(binding.takes(Topic::Batches("s")) && !binding.takes(Topic::Events("s")));
    }
}
