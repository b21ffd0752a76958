//! The end by signals: the first lets requests end, the second does not.

use super::listen::Server;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

impl Server {
    /// Serves until SIGINT or SIGTERM, then lets what runs end, for as long as the settings say. A second signal ends it
    /// at once. Gives the exit code.
    pub fn until_signalled(self) -> u8 {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return 1 };
        let code = runtime.block_on(async {
            let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
            let [Ok(mut interrupt), Ok(mut terminate)] = kinds.map(signal) else { return 1 };
            let mut next = async || {
                tokio::select! {
                    _ = interrupt.recv() => 130,
                    _ = terminate.recv() => 143,
                }
            };
            next().await;
            self.drain();
            let limit = self.service.settings.drain_timeout;
            crate::log::line(&format!("draining for up to {} s; once more ends at once", limit.as_secs()));
            let until = Instant::now() + limit;
            let drained = async {
                while !self.is_over() && Instant::now() < until {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! {
                code = next() => std::process::exit(code),
                () = drained => 0,
            }
        });
        self.stop();
        code
    }
}
