//! Watches the thread that computes: says in the log when it stands still, tells systemd how the server is, and ends the
//! process where a supervisor starts it again.

use crate::service::Service;
use crate::{log, state};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::parent_id;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Set by whoever starts the server again when it ends.
pub(crate) const SUPERVISED: &str = "LAPIS_SUPERVISED";
/// The exit code of a server that stood still.
const STOOD_STILL: i32 = 70;
/// A supervised server that stands still for so long ends.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(500);

/// Where systemd listens, if it started this process.
struct Systemd(Option<(UnixDatagram, String)>);

impl Systemd {
    fn find() -> Systemd {
        let path = std::env::var("NOTIFY_SOCKET").ok().filter(|p| p.starts_with('/'));
        Systemd(path.and_then(|p| Some((UnixDatagram::unbound().ok()?, p))))
    }

    fn tell(&self, what: &str) {
        if let Some((socket, path)) = &self.0 {
            // Nobody listening is no fault of ours.
            drop(socket.send_to(what.as_bytes(), path));
        }
    }
}

/// Watches until the service is gone.
pub(crate) fn watch(service: &Arc<Service>) {
    let service = Arc::downgrade(service);
    drop(std::thread::Builder::new().name("watchdog".into()).spawn(move || look(&service)));
}

fn look(service: &Weak<Service>) {
    let systemd = Systemd::find();
    systemd.tell("READY=1");
    let supervisor = std::env::var_os(SUPERVISED).map(|_| parent_id());
    let (mut stuck, mut told) = (None::<Instant>, "");
    while let Some(service) = service.upgrade() {
        if supervisor.is_some_and(|id| id != parent_id()) {
            log::line("the supervisor is gone; the server ends");
            log::flush();
            std::process::exit(1);
        }
        let word = state::word(&service);
        if service.metrics.is_stuck() {
            let since = *stuck.get_or_insert_with(|| {
                log::line("the engine has not come to the end of a step for 10 s; /health and /ready say so");
                Instant::now()
            });
            if since.elapsed() > PATIENCE && supervisor.is_some() {
                log::line("the engine stands still; the server ends, to be started again");
                log::flush();
                std::process::exit(STOOD_STILL);
            }
        } else {
            if stuck.take().is_some() {
                log::line("the engine goes on");
            }
            systemd.tell("WATCHDOG=1");
        }
        if word != told {
            let stopping = if word == "draining" { "STOPPING=1\n" } else { "" };
            systemd.tell(&format!("{stopping}STATUS={word}"));
            told = word;
        }
        drop(service);
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_told() {
        let path = std::env::temp_dir().join(format!("lapis-notify-{}", std::process::id()));
        let inbox = UnixDatagram::bind(&path).unwrap();
        let systemd = Systemd(Some((UnixDatagram::unbound().unwrap(), path.display().to_string())));
        systemd.tell("READY=1");
        let mut text = [0; 32];
        let n = inbox.recv(&mut text).unwrap();
        assert_eq!(&text[..n], b"READY=1");
        std::fs::remove_file(path).unwrap();
        // A socket that is gone is no fault.
        systemd.tell("WATCHDOG=1");
    }
}
