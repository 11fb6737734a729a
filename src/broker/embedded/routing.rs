//! The language of topic exchanges (AMQP 0-9-1, section 3.1.3.3): a routing key is words between
//! dots; in the key of a binding `*` stands for one word and `#` for any number of them.

/// Whether a binding with `pattern` takes messages with routing key `key`.
pub(super) fn matches(pattern: &str, key: &str) -> bool {
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
    use super::matches;

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
}
