//! The handle by which other tasks send commands to the writer.

use tokio::sync::{mpsc, oneshot};

use super::message_batch::MessageBatch;
use crate::broker::BrokerError;

/// The most commands that wait to be written; senders wait for room.
pub(super) const MAX_COMMANDS: usize = 256;

/// Something to write.
#[derive(Debug)]
pub(super) enum WriteCommand {
    /// Messages, and a channel to confirm that they are stored.
    Publish(MessageBatch, oneshot::Sender<Result<(), BrokerError>>),
    /// Positions in a queue: of messages that are acknowledged, and of those that came back.
    Settle { queue_id: i64, acked: Vec<i64>, returned: Vec<i64> },
    /// How far a queue is delivered: its number and the greatest position, 0 when no message is unsettled.
    /// Confirmed when this is written, and all settlements sent before.
    Delivered(i64, i64, oneshot::Sender<()>),
    /// The same, when nothing has changed.
    Flush(oneshot::Sender<()>),
}

/// Sends commands to the writer. What is sent to a writer that has ended is lost: the broker is gone, and
/// what it delivered comes again.
#[derive(Debug, Clone)]
pub(super) struct WriterHandle(mpsc::Sender<WriteCommand>);

impl WriterHandle {
    /// A handle, and the commands that are sent with it.
    pub(super) fn new() -> (Self, mpsc::Receiver<WriteCommand>) {
        let (writer, commands) = mpsc::channel(MAX_COMMANDS);
        (Self(writer), commands)
    }

    /// Sends messages. The answer says when they are stored; there is none from a writer that has
    /// ended.
    pub(super) async fn publish(
        &self,
        batch: MessageBatch,
    ) -> oneshot::Receiver<Result<(), BrokerError>> {
        let (done, stored) = oneshot::channel();
        let _ = self.0.send(WriteCommand::Publish(batch, done)).await;
        stored
    }

    /// Sends settlements.
    pub(super) async fn settle(&self, queue_id: i64, acked: Vec<i64>, returned: Vec<i64>) {
        let _ = self.0.send(WriteCommand::Settle { queue_id, acked, returned }).await;
    }

    /// Records how far a queue is delivered, and waits until that is written.
    pub(super) async fn delivered(&self, queue_id: i64, position: i64) {
        let (done, written) = oneshot::channel();
        let _ = self.0.send(WriteCommand::Delivered(queue_id, position, done)).await;
        let _ = written.await;
    }

    /// Waits until all settlements sent before are written.
    pub(super) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        let _ = self.0.send(WriteCommand::Flush(done)).await;
        let _ = written.await;
    }
}
