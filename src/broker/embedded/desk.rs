//! Where the writer's work is handed in.

use tokio::sync::{mpsc, oneshot};

use super::parcel::Parcel;
use crate::broker::BrokerError;

/// Jobs that wait to be written; whoever has more waits himself.
pub(super) const MAX_JOBS: usize = 256;

/// Something to write.
#[derive(Debug)]
pub(super) enum Job {
    /// Messages, and who waits for them to be stored.
    Publish(Parcel, oneshot::Sender<Result<(), BrokerError>>),
    /// Places of a queue: of messages that are done, and of those that came back.
    Settle { queue_id: i64, acked: Vec<i64>, returned: Vec<i64> },
    /// How far a queue is handed out: its number and the greatest place, 0 when nobody has any in
    /// hand. Whoever waits is told when this is written, and all settlements handed in before.
    HandedOut(i64, i64, oneshot::Sender<()>),
    /// The same, when nothing has changed.
    Flush(oneshot::Sender<()>),
}

/// The desk. A writer that has ended takes nothing any more, and what is handed in is lost: the
/// broker is gone, and what it handed out comes again.
#[derive(Debug, Clone)]
pub(super) struct Desk(mpsc::Sender<Job>);

impl Desk {
    /// A desk, and what is handed in there.
    pub(super) fn new() -> (Self, mpsc::Receiver<Job>) {
        let (desk, jobs) = mpsc::channel(MAX_JOBS);
        (Self(desk), jobs)
    }

    /// Hands in messages. The answer tells when they are stored; there is none from a writer that
    /// has ended.
    pub(super) async fn publish(
        &self,
        parcel: Parcel,
    ) -> oneshot::Receiver<Result<(), BrokerError>> {
        let (done, stored) = oneshot::channel();
        let _ = self.0.send(Job::Publish(parcel, done)).await;
        stored
    }

    /// Hands in settlements.
    pub(super) async fn settle(&self, queue_id: i64, acked: Vec<i64>, returned: Vec<i64>) {
        let _ = self.0.send(Job::Settle { queue_id, acked, returned }).await;
    }

    /// Writes how far a queue is handed out.
    pub(super) async fn handed_out(&self, queue_id: i64, place: i64) {
        let (done, written) = oneshot::channel();
        let _ = self.0.send(Job::HandedOut(queue_id, place, done)).await;
        let _ = written.await;
    }

    /// Waits until all settlements handed in before are written.
    pub(super) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        let _ = self.0.send(Job::Flush(done)).await;
        let _ = written.await;
    }
}
