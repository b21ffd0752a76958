//! How long a thread has worked, as the system counts it: what others do on the machine meanwhile is not in it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::WAIT;

/// What a thread has taken since it began to work.
pub(super) struct Clock {
    begun: Instant,
    /// Where Linux says how many nanoseconds the thread has run; elsewhere the clock on the wall counts.
    spent: Option<PathBuf>,
}

impl Clock {
    /// Of this thread, which begins to work.
    pub(super) fn new() -> Clock {
        let task = fs::read_link("/proc/thread-self").ok();
        Clock { begun: Instant::now(), spent: task.map(|task| PathBuf::from("/proc").join(task).join("schedstat")) }
    }

    /// What is left of the most that it may take.
    pub(super) fn left(&self, most: Duration) -> Duration {
        let elapsed = self.begun.elapsed();
        most.saturating_sub(self.worked().unwrap_or(elapsed)).min(WAIT.saturating_sub(elapsed))
    }

    fn worked(&self) -> Option<Duration> {
        let text = fs::read_to_string(self.spent.as_ref()?).ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_thread_does_counts() {
        let (clock, most) = (Clock::new(), Duration::from_secs(1));
        std::thread::sleep(Duration::from_millis(300));
        let left = clock.left(most);
        if cfg!(target_os = "linux") {
            assert!(left > Duration::from_millis(900), "{left:?} are left of {most:?} after sleep");
        }
        let begun = Instant::now();
        while clock.left(most) > most / 2 {
            assert!(begun.elapsed() < WAIT, "work does not count: {:?} are left", clock.left(most));
            std::hint::black_box((0..1_000_000).fold(0u64, |a, b| a ^ b));
        }
    }
}
