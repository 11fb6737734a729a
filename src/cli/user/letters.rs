//! A user among the dead letters.

mod body;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;

use self::body::{detail_without, replaced};
use crate::broker::{Broker, DeadLetter, Delivery, Message, Queue};
use crate::cli::dead_letters::walk::{Step, Walk};
use crate::cli::dead_letters::{CHUNK, death_info};
use crate::domain::order::{SaleId, UserId};
use crate::ledger::keys;

/// The sales that dead letters of a user name.
pub(super) async fn sales(broker: &dyn Broker, user: &UserId) -> anyhow::Result<BTreeSet<SaleId>> {
    let (mut sales, other) = (BTreeSet::new(), keys::random().token(user));
    let mut walk = Walk::begin(broker, Queue::DeadLetters).await?;
    loop {
        match walk.next().await? {
            Step::Letter(letter) => {
                replaced(&letter.body, user, &mut |sale| {
                    sales.extend(sale.cloned());
                    other.clone()
                });
                walk.keep(*letter);
            }
            Step::Restart => {}
            Step::End => break,
        }
    }
    end(walk).await?;
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
    let mut token_of =
        |sale: Option<&SaleId>| sale.and_then(|sale| tokens.get(sale)).unwrap_or(&anyone).clone();
    let mut walk = Walk::begin(broker, Queue::DeadLetters).await?;
    let (mut waiting, mut count): (Vec<(Delivery, DeadLetter)>, usize) = (Vec::new(), 0);
    loop {
        match walk.next().await? {
            Step::Letter(letter) => {
                let body = replaced(&letter.body, user, &mut token_of);
                let detail = detail_without(&death_info(&letter).detail, user);
                if body.is_some() || detail.is_some() {
                    let copy = copy(&letter, body, detail);
                    waiting.push((*letter, copy));
                } else {
                    walk.keep(*letter);
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
    end(walk).await?;
    Ok(count)
}

/// Ends a walk, which fails unless it has met every letter.
async fn end(walk: Walk<'_>) -> anyhow::Result<()> {
    let is_whole = walk.is_whole();
    walk.end().await;
    if !is_whole {
        bail!(
            "others hold dead letters (a consumer of their queue, or a command on them), which may have the id; \
             repeat the command when they have ended"
        );
    }
    Ok(())
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

/// The same dead letter with another body or another detail.
fn copy(letter: &Delivery, body: Option<Vec<u8>>, detail: Option<String>) -> DeadLetter {
    let (death, properties) = (death_info(letter), letter.properties.clone());
    let body = body.unwrap_or_else(|| letter.body.clone());
    let (reason, detail, id) = (death.reason.into(), detail.unwrap_or(death.detail), death.id);
    DeadLetter { body, properties, reason, detail, id }
}
