//! The compute threads: one a core, at lower priority than the doors, shared by all models.
//!
//! A job here is arithmetic only; it never waits for anything. Who waits is the driver of a model, on a thread that costs no
//! processor while it sleeps. The threads are few and live long, because the gemm keeps about 2 MiB of packing space for each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use crossbeam::channel::{Sender, unbounded};

type Job = Box<dyn FnOnce() + Send>;

/// The threads. Dropping the last handle lets them finish their jobs and end.
#[derive(Clone, Debug)]
pub struct Pool {
    jobs: Sender<Job>,
    threads: usize,
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
                    // Who made the job catches its panics and tells whom they concern; this only keeps the thread.
                    drop(catch_unwind(AssertUnwindSafe(job)));
                }
            })?;
        }
        Ok(Pool { jobs, threads })
    }

    /// How many there are.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Whether a job waits for a thread.
    pub fn is_wanted(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Runs `job` on the next free thread. It is to catch its own panics; one that it does not catch ends with the job.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        // The threads hold on to the queue as long as there is a sender.
        drop(self.jobs.send(Box::new(job)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_with_its_job_and_the_thread_goes_on() {
        let pool = Pool::new(1, 0).unwrap();
        let (tell, told) = unbounded();
        pool.spawn(|| panic!("no such luck"));
        pool.spawn(move || tell.send(2 + 2).unwrap());
        assert_eq!(told.recv().unwrap(), 4);
        assert_eq!(pool.threads(), 1);
    }
}
