//! The answer to whoever asks a model for a change. It is carried out if somebody waits for it when it is its turn, and otherwise never: who has
//! been told that the model is busy may ask for something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::live::ChangeError;

/// The driver's end.
#[derive(Debug)]
pub struct Reply {
    answer: oneshot::Sender<Result<(), ChangeError>>,
    /// Set once: by the driver, which begins, or by whoever asked, who gives up.
    settled: Arc<AtomicBool>,
}

impl Reply {
    pub(super) fn new() -> (Reply, Asked) {
        let (answer, answered) = oneshot::channel();
        let settled = Arc::new(AtomicBool::new(false));
        (Reply { answer, settled: settled.clone() }, Asked { answered, settled })
    }

    /// Whether nobody waits any more for what was not begun.
    pub(super) fn is_given_up(&self) -> bool {
        self.answer.is_closed() || self.settled.load(Ordering::Acquire)
    }

    /// Takes what is asked for up; `false` if nobody waits any more. From here on it is waited for to its end.
    pub(super) fn begin(&self) -> bool {
        !self.answer.is_closed() && !self.settled.swap(true, Ordering::AcqRel)
    }

    pub(super) fn send(self, answer: Result<(), ChangeError>) {
        // The client may have gone; the change holds all the same.
        drop(self.answer.send(answer));
    }
}

/// The end of whoever asked.
pub(super) struct Asked {
    answered: oneshot::Receiver<Result<(), ChangeError>>,
    settled: Arc<AtomicBool>,
}

impl Asked {
    /// The answer to what was begun by `deadline`, if there is one, of the model of this name.
    pub(super) async fn by(mut self, deadline: Option<Instant>, model: &str) -> Result<(), ChangeError> {
        let gone = |_| Err(ChangeError::Gone(model.to_owned()));
        if let Some(deadline) = deadline {
            match tokio::time::timeout_at(deadline, &mut self.answered).await {
                Ok(answer) => return answer.unwrap_or_else(gone),
                Err(_) if !self.settled.swap(true, Ordering::AcqRel) => return Err(ChangeError::Busy(model.to_owned())),
                Err(_) => {}
            }
        }
        self.answered.await.unwrap_or_else(gone)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_is_given_up_is_not_begun_and_what_is_begun_is_waited_for() {
        let (reply, asked) = Reply::new();
        assert!(matches!(asked.by(Some(Instant::now()), "m").await, Err(ChangeError::Busy(_))));
        assert!(reply.is_given_up() && !reply.begin());

        let (reply, asked) = Reply::new();
        assert!(reply.begin());
        let driver = tokio::spawn(async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            reply.send(Ok(()));
        });
        asked.by(Some(Instant::now()), "m").await.unwrap();
        driver.await.unwrap();

        let (reply, asked) = Reply::new();
        drop(asked);
        assert!(reply.is_given_up() && !reply.begin());
        let (reply, asked) = Reply::new();
        drop(reply);
        assert!(matches!(asked.by(None, "m").await, Err(ChangeError::Gone(_))));
    }
}
