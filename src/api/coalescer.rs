//! Calls that come at the same time, made as one.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

/// The most calls made as one.
const MAX_BATCH: usize = 512;

/// Coalesces single questions into batches: all that wait when a call ends, without waiting
/// for more. A server that answers hundreds of questions as fast as one is then asked so.
pub(super) struct RequestCoalescer<Q, A, E> {
    questions: mpsc::Sender<(Q, Responder<A, E>)>,
}

/// The answer to one question; an error is shared by all questions of its batch.
type Answer<A, E> = Result<A, Arc<E>>;
type Responder<A, E> = oneshot::Sender<Answer<A, E>>;

/// The task that was to answer has panicked.
#[derive(Debug, thiserror::Error)]
#[error("no answer")]
pub(super) struct NoAnswer;

impl<Q, A, E> RequestCoalescer<Q, A, E>
where
    Q: Send + 'static,
    A: Send + 'static,
    E: Send + Sync + 'static,
{
    /// Asks by calling `ask` with batches, up to `at_once` of them at the same time. It gives one
    /// answer for each question, in order.
    pub(super) fn new<F, R>(at_once: usize, ask: F) -> Self
    where
        F: Fn(Vec<Q>) -> R + Send + 'static,
        R: Future<Output = Result<Vec<A>, E>> + Send + 'static,
    {
        let (questions, mut waiting) = mpsc::channel::<(Q, Responder<A, E>)>(MAX_BATCH);
        tokio::spawn(async move {
            let permits = Arc::new(Semaphore::new(at_once));
            let mut batch = Vec::new();
            loop {
                let Ok(permit) = permits.clone().acquire_owned().await else { return };
                if waiting.recv_many(&mut batch, MAX_BATCH).await == 0 {
                    return;
                }
                let (questions, requesters): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
                let answers = ask(questions);
                tokio::spawn(async move {
                    respond(answers.await, requesters);
                    drop(permit);
                });
            }
        });
        Self { questions }
    }

    /// Asks one question.
    pub(super) async fn ask(&self, question: Q) -> Result<Answer<A, E>, NoAnswer> {
        let (responder, answer) = oneshot::channel();
        self.questions.send((question, responder)).await.map_err(|_| NoAnswer)?;
        answer.await.map_err(|_| NoAnswer)
    }
}

/// Gives each requester its answer. Those that have left get none.
fn respond<A, E>(answers: Result<Vec<A>, E>, requesters: Vec<Responder<A, E>>) {
    match answers {
        Ok(answers) => {
            for (requester, answer) in requesters.into_iter().zip(answers) {
                let _ = requester.send(Ok(answer));
            }
        }
        Err(error) => {
            let error = Arc::new(error);
            for requester in requesters {
                let _ = requester.send(Err(error.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_waits_is_asked_together_and_answered_apart() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let coalescer = RequestCoalescer::<u32, u32, ()>::new(1, move |questions| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::task::yield_now().await;
                Ok(questions.into_iter().map(|question| question * 2).collect())
            }
        });
        let answers =
            futures_util::future::join_all((0..100).map(|question| coalescer.ask(question))).await;
        for (question, answer) in (0..100).zip(answers) {
            assert_eq!(answer.unwrap(), Ok(question * 2));
        }
        assert!(calls.load(Ordering::Relaxed) < 50);
    }

    #[tokio::test]
    async fn an_error_is_shared_and_the_next_batch_is_asked_again() {
        let coalescer = RequestCoalescer::<bool, (), &str>::new(2, |questions| async move {
            if questions.contains(&false) { Err("no") } else { Ok(vec![(); questions.len()]) }
        });
        assert_eq!(coalescer.ask(false).await.unwrap(), Err(Arc::new("no")));
        assert_eq!(coalescer.ask(true).await.unwrap(), Ok(()));
    }
}
