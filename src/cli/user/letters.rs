//! A user among the dead letters.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::broker::{Broker, DeadLetter, Delivery, Message, Queue};
use crate::cli::dead_letters::walk::{Step, Walk};
use crate::cli::dead_letters::{CHUNK, death_info};
use crate::domain::event::order_key_of;
use crate::domain::order::{SaleId, UserId};
use crate::ledger::keys;

const FIELD: &str = "\"user_id\"";

/// The sales that dead letters of a user name.
pub(super) async fn sales(broker: &dyn Broker, user: &UserId) -> anyhow::Result<BTreeSet<SaleId>> {
    let (mut sales, other) = (BTreeSet::new(), keys::random().token(user));
    let mut walk = Walk::begin(broker, Queue::DeadLetters).await?;
    loop {
        match walk.next().await? {
            Step::Letter(letter) => {
                if replaced(&letter.body, user, &other).is_some() {
                    sales.extend(order_key_of(&letter.body).map(|order| order.sale_id));
                }
                walk.keep(*letter);
            }
            Step::Restart => {}
            Step::End => break,
        }
    }
    walk.end().await;
    Ok(sales)
}

/// Replaces the user in dead letters: each is acknowledged once its copy is confirmed. Returns in how many.
pub(super) async fn replace(
    broker: &dyn Broker,
    user: &UserId,
    tokens: &BTreeMap<SaleId, UserId>,
) -> anyhow::Result<usize> {
    // Of a sale that does not exist nobody can tell later which token was whose.
    let anyone = keys::random().token(user);
    let mut walk = Walk::begin(broker, Queue::DeadLetters).await?;
    let (mut waiting, mut count): (Vec<(Delivery, DeadLetter)>, usize) = (Vec::new(), 0);
    loop {
        match walk.next().await? {
            Step::Letter(letter) => {
                let sale = order_key_of(&letter.body).map(|order| order.sale_id);
                let token = sale.and_then(|sale| tokens.get(&sale)).unwrap_or(&anyone);
                match replaced(&letter.body, user, token) {
                    Some(body) => {
                        let copy = copy(&letter, body);
                        waiting.push((*letter, copy));
                    }
                    None => walk.keep(*letter),
                }
            }
            Step::Restart => waiting.clear(),
            Step::End => break,
        }
        if waiting.len() == CHUNK {
            count += send(broker, &mut walk, &mut waiting).await?;
        }
    }
    count += send(broker, &mut walk, &mut waiting).await?;
    walk.end().await;
    Ok(count)
}

async fn send(
    broker: &dyn Broker,
    walk: &mut Walk<'_>,
    waiting: &mut Vec<(Delivery, DeadLetter)>,
) -> anyhow::Result<usize> {
    let messages: Vec<Message<'_>> =
        waiting.iter().map(|(_, copy)| Message::DeadLetter(copy)).collect();
    broker.publish(&messages).await.all()?;
    let count = waiting.len();
    waiting.drain(..).for_each(|(letter, _)| walk.done(letter));
    Ok(count)
}

/// The same dead letter with another body.
fn copy(letter: &Delivery, body: Vec<u8>) -> DeadLetter {
    let (death, properties) = (death_info(letter), letter.properties.clone());
    let (reason, detail, id) = (death.reason.into(), death.detail, death.id);
    DeadLetter { body, properties, reason, detail, id }
}

/// `body` with `token` in the place of the user, in every field `user_id`; `None` if it has none with the user. All
/// else stays as it was, also in a body that is no JSON.
fn replaced(body: &[u8], user: &UserId, token: &UserId) -> Option<Vec<u8>> {
    let value = format!("\"{user}\"");
    let (mut changed, mut rest, mut is_changed) = (Vec::new(), body, false);
    while let Some(at) = find(rest, FIELD.as_bytes()) {
        let (before, after) = rest.split_at(at + FIELD.len());
        changed.extend_from_slice(before);
        rest = after;
        let begins = after.iter().position(|byte| !byte.is_ascii_whitespace() && *byte != b':');
        let Some(begins) = begins else { break };
        if after[begins..].starts_with(value.as_bytes()) {
            changed.extend_from_slice(&after[..begins]);
            changed.extend_from_slice(format!("\"{token}\"").as_bytes());
            rest = &after[begins + value.len()..];
            is_changed = true;
        }
    }
    changed.extend_from_slice(rest);
    // The id may be written with escapes.
    if let Ok(mut json) = serde_json::from_slice::<Value>(&changed)
        && in_json(&mut json, user, token)
    {
        return serde_json::to_vec(&json).ok();
    }
    is_changed.then_some(changed)
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

fn in_json(json: &mut Value, user: &UserId, token: &UserId) -> bool {
    let mut is_changed = false;
    match json {
        Value::Array(values) => {
            for value in values {
                is_changed |= in_json(value, user, token);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == "user_id" && value.as_str() == Some(user.as_str()) {
                    *value = Value::String(token.to_string());
                    is_changed = true;
                }
                is_changed |= in_json(value, user, token);
            }
        }
        _ => {}
    }
    is_changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_users_field_is_replaced() {
        let (user, token) = (UserId::parse("1").unwrap(), UserId::parse("t").unwrap());
        let is = |body: &str| {
            let changed = replaced(body.as_bytes(), &user, &token)?;
            Some(String::from_utf8(changed).unwrap())
        };
        for (body, expected) in [
            (
                r#"{"quantity":1,"user_id":"1","order_id":"1"}"#,
                r#"{"quantity":1,"user_id":"t","order_id":"1"}"#,
            ),
            (
                r#"[{"user_id" : "1"},{"user_id":"2"}, {"user_id":"1"}]"#,
                r#"[{"user_id" : "t"},{"user_id":"2"}, {"user_id":"t"}]"#,
            ),
            (r#"{"user_id":"1", no JSON"#, r#"{"user_id":"t", no JSON"#),
            (r#"{"user_id":"\u0031"}"#, r#"{"user_id":"t"}"#),
        ] {
            assert_eq!(is(body).as_deref(), Some(expected));
        }
        for other in
            [r#"{"user_id":"12","quantity":1}"#, r#"{"user_id""#, "1", r#"{"order_id":"1"}"#]
        {
            assert_eq!(is(other), None, "{other}");
        }
    }
}
