//! The compute threads: one a core, at lower priority than the doors, shared by all models.
//!
//! A job here is arithmetic only; it never waits for anything. Who waits is the driver of a model, on a thread that costs no
//! processor while it sleeps. The threads are few and live long, because the gemm keeps about 2 MiB of packing space for each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

type Job = Box<dyn FnOnce() + Send>;

/// The threads. Dropping the last handle lets them finish their jobs and end.
#[derive(Clone, Debug)]
pub struct Pool {
    jobs: Sender<Job>,
}

/// A job that panicked; the text is the panic's message.
#[derive(Debug, thiserror::Error)]
#[error("the step panicked: {0}")]
pub struct Panicked(pub String);

/// The result of a job that may still be running.
#[derive(Debug)]
pub struct Pending<T>(Receiver<Result<T, Panicked>>);

impl<T> Pending<T> {
    /// Waits for the job's end.
    pub fn wait(self) -> Result<T, Panicked> {
        self.0.recv().unwrap_or_else(|_| Err(Panicked("the compute thread is gone".into())))
    }
}

impl Pool {
    /// Starts `threads` threads (0: one a core) at `nice` levels below the doors.
    pub fn new(threads: usize, nice: i32) -> std::io::Result<Pool> {
        let threads = if threads == 0 { thread::available_parallelism()?.get() } else { threads };
        let (jobs, queue) = unbounded::<Job>();
        for number in 0..threads {
            let queue = queue.clone();
            thread::Builder::new().name(format!("mustela-compute-{number}")).spawn(move || {
                // Linux gives every thread a priority of its own; where that is refused, the doors only lose their advantage.
                if let Err(error) = rustix::process::nice(nice) {
                    tracing::warn!(%error, "compute threads keep the doors' priority");
                }
                for job in queue {
                    job();
                }
            })?;
        }
        Ok(Pool { jobs })
    }

    /// Runs `job` on the next free thread. A panic in it is caught and told to whoever waits.
    pub fn spawn<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Pending<T> {
        let (done, end) = bounded(1);
        let job = move || {
            let result = catch_unwind(AssertUnwindSafe(job)).map_err(|payload| Panicked(message(payload.as_ref())));
            // Nobody may be waiting any more: the model was deleted.
            drop(done.send(result));
        };
        // A closed queue drops the job and with it `done`, which `wait` tells as a panic.
        drop(self.jobs.send(Box::new(job)));
        Pending(end)
    }
}

fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_and_the_thread_goes_on() {
        let pool = Pool::new(1, 0).unwrap();
        assert_eq!(pool.spawn(|| 2 + 2).wait().unwrap(), 4);
        let told = pool.spawn(|| -> u32 { panic!("no such luck {}", 7) }).wait().unwrap_err();
        assert_eq!(told.0, "no such luck 7");
        assert_eq!(pool.spawn(|| 5).wait().unwrap(), 5);
    }
}
