//! Messages whose properties do not fit a frame any more are replaced by such that do.

use std::sync::Arc;

use super::publisher::Publisher;
use super::reader::{Reader, Taken};
use super::{Link, wire};
use crate::broker::{BrokerError, DeadLetter, DeathInfo, Delay, Message, Queue};

/// Looks at up to `most` messages at the head of `queue`, and replaces those whose properties take more than
/// half of what fits a frame: each is published once more with bounded properties, and acknowledged when
/// that is confirmed. The others come back to their places. Returns how many were replaced.
pub(super) async fn replace(
    link: &Arc<Link>,
    queue: &Queue,
    most: usize,
) -> Result<usize, BrokerError> {
    let (name, publisher) = (link.topology.queue(queue), Publisher::new(link.clone()));
    let mut reader = Reader::connect(link).await?;
    let mut replaced = 0;
    for _ in 0..most {
        let Some(taken) = reader.take(&name).await? else { break };
        if taken.properties_bytes > reader.frame_max / 2 {
            let tag = taken.tag;
            publish(&publisher, queue, taken).await?;
            reader.ack(tag).await?;
            replaced += 1;
        }
    }
    reader.close().await?;
    Ok(replaced)
}

async fn publish(publisher: &Publisher, queue: &Queue, taken: Taken) -> Result<(), BrokerError> {
    let Taken { routing_key, properties, body, .. } = taken;
    // The body stays whole: the next consumer has a limit for it.
    let (body, properties) = wire::received(routing_key, properties, body, queue, usize::MAX);
    if *queue != Queue::DeadLetters {
        let (routing_key, body) = (&properties.routing_key, &body);
        // By way of a delay queue, as whatever workers send on, so that they need no further permission.
        let delay = Some(Delay::OneSecond);
        let intent = Message::Intent { routing_key, body, properties: Some(&properties), delay };
        return publisher.publish(&[intent]).await.all();
    }
    let DeathInfo { reason, detail, .. } = properties.dead.clone().unwrap_or_default();
    let id = DeadLetter::id_of(&properties, 0, &body);
    let letter = DeadLetter { body, properties, reason: reason.into(), detail, id };
    publisher.publish(&[Message::DeadLetter(&letter)]).await.all()
}
