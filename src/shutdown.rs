//! The end of the process, as a type passed down: whoever serves something holds a [`Shutdown`] and stops taking on work when it
//! says so.
//!
//! The order of promise 7: the trigger is pulled, readiness goes false and doors refuse (they ask [`Shutdown::is_draining`]),
//! listeners let requests under way finish, and then `cli::serve::Service::stop` ends the models, each with a checkpoint.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Begins the draining; whoever runs the service has the only one.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// Says whether the process is draining. Each task that must finish before the process ends holds a clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// A trigger and the first handle on it.
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// Begins the draining; calling it again changes nothing.
    pub fn drain(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Whether no new work may be taken on.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Returns when the draining begins, at once if it has begun. A trigger that was dropped counts as pulled, so that nobody
    /// outlives the one who could stop them.
    pub async fn draining(&self) {
        let mut receiver = self.0.clone();
        // An error says that the trigger is gone, which is the same answer.
        receiver.wait_for(|draining| *draining).await.ok();
    }
}

/// The signals that end the process: SIGTERM, which supervisors send, and SIGINT, which Ctrl-C sends.
#[derive(Debug)]
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// Takes the signals over from the system's default, which is to end at once; call it before the doors open.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal and gives the exit status that a shell would report for it: 128 and its number.
    pub async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => 128 + SignalKind::terminate().as_raw_value(),
            _ = self.interrupt.recv() => 128 + SignalKind::interrupt().as_raw_value(),
        }
    }

    /// Waits for the first signal; the next one ends the process at once, for a person who does not want to wait.
    pub async fn first(mut self) {
        self.next().await;
        tokio::spawn(async move {
            let status = self.next().await;
            tracing::warn!("second signal: ending without draining");
            std::process::exit(status);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_trigger_reaches_every_handle() {
        let (trigger, shutdown) = channel();
        let later = shutdown.clone();
        assert!(!shutdown.is_draining() && !later.is_draining());
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.draining().await }
        });
        trigger.drain();
        trigger.drain();
        waiting.await.unwrap();
        assert!(shutdown.is_draining() && later.is_draining());
        later.draining().await;
    }

    #[tokio::test]
    async fn a_lost_trigger_counts_as_pulled() {
        let (trigger, shutdown) = channel();
        drop(trigger);
        shutdown.draining().await;
        assert!(shutdown.is_draining());
    }

    #[tokio::test]
    async fn a_signal_is_heard() {
        let mut signals = Signals::listen().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        assert_eq!(signals.next().await, 143);
    }
}
