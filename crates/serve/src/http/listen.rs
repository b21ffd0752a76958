//! Sockets: where the server listens, how many connections there are, how it ends.

use super::broken::Worded;
use super::request::{Way, answer};
use super::timed::Timed;
use super::tls;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::service::Service;
use crate::settings::Settings;
use crate::watchdog;
use crate::worker::{Command, Worker};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lapis::{Error, Result};
use lapis_lm::Disk;
use std::convert::Infallible;
use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    /// Host and port.
    Tcp(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

/// A server that runs.
pub struct Server {
    /// Where it listens.
    pub addresses: Vec<Address>,
    /// What it knows.
    pub service: Arc<Service>,
    stop: watch::Sender<Phase>,
    http: Option<JoinHandle<()>>,
    engine: Option<JoinHandle<()>>,
}

/// How far the end is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
enum Phase {
    Serving,
    /// No new work; what runs may end.
    Draining,
    /// All ends.
    Over,
}

/// How long a server that ends goes on writing what prompts were.
const FLUSH: Duration = Duration::from_secs(5);
/// Headers come within so long.
const HEADERS: Duration = Duration::from_secs(10);

impl Server {
    /// Opens the sockets, begins to load the model, and answers from then on.
    ///
    /// # Errors
    /// A host or port that cannot be listened on; a host beyond this machine without a key.
    pub fn start(settings: Settings) -> Result<Server> {
        let settings = Arc::new(settings);
        let metrics = Arc::new(Metrics::new());
        let (commands, inbox) = mpsc::channel();
        let forget = commands.clone();
        let gone = move |serial| drop(forget.send(Command::Forget(serial)));
        let disk = disk(&settings);
        let models = Arc::new(Models::new(Arc::clone(&settings), Arc::clone(&metrics), disk.clone(), gone)?);
        let service = Arc::new(Service::new(Arc::clone(&settings), models, Arc::clone(&metrics), disk, commands));
        let tls = settings.tls.as_ref().map(|(cert, key)| tls::acceptor(cert, key)).transpose()?;
        let sockets = Sockets::open(&settings)?;
        let addresses = sockets.addresses()?;
        let worker = Worker::new(settings, metrics, inbox);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let made = std::thread::Builder::new().name(name.into()).stack_size(16 << 20).spawn(work);
            made.map_err(|e| Error::memory(format!("[serve] no thread: {e}")))
        };
        let engine = spawn("engine", Box::new(move || worker.run()))?;
        watchdog::watch(&service);
        let (stop, phase) = watch::channel(Phase::Serving);
        let inner = Arc::clone(&service);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(8)
            .build()
            .map_err(|e| Error::io(format!("[serve] no event loop: {e}")))?;
        let http = spawn("http", Box::new(move || runtime.block_on(serve(inner, sockets, tls, phase))))?;
        Ok(Server { addresses, service, stop, http: Some(http), engine: Some(engine) })
    }

    /// Takes no new work from now on; what runs may end.
    pub fn drain(&self) {
        self.service.draining.store(true, Relaxed);
        self.stop.send_replace(Phase::Draining);
    }

    /// Whether all connections have ended after [`Server::drain`].
    pub fn is_over(&self) -> bool {
        self.http.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends now.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.service.draining.store(true, Relaxed);
        let _ = self.service.commands.send(Command::Stop);
        if let Some(engine) = self.engine.take() {
            drop(engine.join());
        }
        if let Some(disk) = &self.service.disk {
            disk.flush(FLUSH);
        }
        self.stop.send_replace(Phase::Over);
        if let Some(http) = self.http.take() {
            drop(http.join());
        }
        for address in &self.addresses {
            if let Address::Unix(path) = address {
                drop(std::fs::remove_file(path));
            }
        }
        crate::log::flush();
    }
}

/// The folder of remembered prompts; a server does without one that cannot be used.
fn disk(settings: &Settings) -> Option<Arc<Disk>> {
    let (dir, limit) = settings.disk_cache.as_ref()?;
    match Disk::open(dir, *limit) {
        Ok(disk) => Some(Arc::new(disk)),
        Err(e) => {
            crate::log::line(&format!("prompts are not kept on disk: {}", e.message()));
            None
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sockets that are open.
struct Sockets {
    tcp: Vec<std::net::TcpListener>,
    unix: Option<(std::os::unix::net::UnixListener, PathBuf)>,
}

impl Sockets {
    fn open(settings: &Settings) -> Result<Sockets> {
        let mut sockets = Sockets { tcp: Vec::new(), unix: None };
        if let Some(path) = &settings.unix_socket {
            let fail = |e: std::io::Error| Error::io(format!("[serve] {}: {e}", path.display()));
            // What a server left that was killed is in the way; a socket that somebody answers is not ours to take.
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(Error::io(format!("[serve] {}: another server listens there", path.display())));
            }
            use std::os::unix::fs::{FileTypeExt, PermissionsExt};
            if path.symlink_metadata().is_ok_and(|m| m.file_type().is_socket()) {
                std::fs::remove_file(path).map_err(fail)?;
            }
            let socket = std::os::unix::net::UnixListener::bind(path).map_err(fail)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
            sockets.unix = Some((socket, path.clone()));
            return Ok(sockets);
        }
        let both = matches!(settings.host.as_str(), "localhost" | "127.0.0.1");
        let host = if both { "127.0.0.1" } else { settings.host.as_str() };
        let plain = host.trim_matches(['[', ']']);
        let found = std::net::ToSocketAddrs::to_socket_addrs(&(plain, settings.port))
            .map_err(|e| Error::value(format!("[serve] --host {host}: {e}")))?;
        let Some(first) = found.into_iter().next() else {
            return Err(Error::value(format!("[serve] --host {host} has no address")));
        };
        let taken = |e: std::io::Error| {
            let hint = if e.kind() == std::io::ErrorKind::AddrInUse { "; --port takes another one, 0 any" } else { "" };
            Error::io(format!("[serve] cannot listen on {first}: {e}{hint}"))
        };
        let tcp = std::net::TcpListener::bind(first).map_err(taken)?;
        let port = tcp.local_addr().map_err(taken)?.port();
        sockets.tcp.push(tcp);
        if both {
            // A machine without IPv6 has no second address.
            sockets.tcp.extend(std::net::TcpListener::bind((IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), port)).ok());
        }
        Ok(sockets)
    }

    fn addresses(&self) -> Result<Vec<Address>> {
        let fail = |e: std::io::Error| Error::io(format!("[serve] {e}"));
        let mut all = Vec::new();
        for tcp in &self.tcp {
            tcp.set_nonblocking(true).map_err(fail)?;
            all.push(Address::Tcp(tcp.local_addr().map_err(fail)?));
        }
        if let Some((unix, path)) = &self.unix {
            unix.set_nonblocking(true).map_err(fail)?;
            all.push(Address::Unix(path.clone()));
        }
        Ok(all)
    }
}

async fn serve(service: Arc<Service>, sockets: Sockets, tls: Option<TlsAcceptor>, phase: watch::Receiver<Phase>) {
    let slots = Arc::new(Semaphore::new(service.settings.max_connections));
    let mut loops = Vec::new();
    for tcp in sockets.tcp {
        let loopback = tcp.local_addr().is_ok_and(|a| a.ip().is_loopback());
        let Ok(listener) = TcpListener::from_std(tcp) else { continue };
        let way = Way { loopback, unix: false };
        let (service, slots, phase) = (Arc::clone(&service), Arc::clone(&slots), phase.clone());
        loops.push(match tls.clone() {
            None => tokio::spawn(accept(service, slots, phase, way, listener, |s| ready(Some(s)))),
            Some(tls) => {
                let inner = Arc::clone(&service);
                let open = move |stream| tls::open(tls.clone(), stream, Arc::clone(&inner));
                tokio::spawn(accept(service, slots, phase, way, listener, open))
            }
        });
    }
    if let Some((unix, _)) = sockets.unix
        && let Ok(listener) = UnixListener::from_std(unix)
    {
        let way = Way { loopback: true, unix: true };
        let (service, slots, phase) = (Arc::clone(&service), Arc::clone(&slots), phase.clone());
        loops.push(tokio::spawn(accept(service, slots, phase, way, listener, |s| ready(Some(s)))));
    }
    let tidy = Arc::clone(&service);
    let tidy = tokio::spawn(async move {
        // The start-up model is loaded before anybody asks.
        drop(tidy.models.get("").await);
        for (name, _) in &tidy.settings.adapters {
            drop(tidy.models.get_with(tidy.models.start(), Some(name)).await);
        }
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            tidy.models.tidy();
        }
    });
    for each in loops {
        drop(each.await);
    }
    tidy.abort();
    // All slots are free again when the last connection has ended.
    let (all, mut phase) = (service.settings.max_connections as u32, phase);
    let ended = async { drop(slots.acquire_many(all).await) };
    let over = reached(&mut phase, Phase::Over);
    tokio::select! {
        () = ended => {}
        () = over => tokio::time::sleep(Duration::from_millis(200)).await,
    }
}

/// Waits until the end is so far.
async fn reached(phase: &mut watch::Receiver<Phase>, at: Phase) {
    drop(phase.wait_for(|p| *p >= at).await);
}

/// A socket that connections come from.
trait Listener: Send {
    type Stream: Send + 'static;
    fn next(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> std::io::Result<Self::Stream> {
        let (stream, _) = self.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> std::io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

/// Takes connections until the server drains; `open` makes of each what HTTP is spoken on, if anything.
async fn accept<L: Listener, S, F>(
    service: Arc<Service>,
    slots: Arc<Semaphore>,
    mut phase: watch::Receiver<Phase>,
    way: Way,
    listener: L,
    open: impl Fn(L::Stream) -> F + Send,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Option<S>> + Send + 'static,
{
    loop {
        let slot = tokio::select! {
            () = reached(&mut phase, Phase::Draining) => return,
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        let Ok(slot) = slot else { return };
        let stream = tokio::select! {
            () = reached(&mut phase, Phase::Draining) => return,
            stream = listener.next() => stream,
        };
        let Ok(stream) = stream else {
            // No descriptors left: some will be free soon.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (service, mut phase, opened) = (Arc::clone(&service), phase.clone(), open(stream));
        tokio::spawn(async move {
            let _slot = slot;
            let stream = tokio::select! {
                () = reached(&mut phase, Phase::Draining) => return,
                stream = tokio::time::timeout(HEADERS, opened) => stream,
            };
            let Ok(Some(stream)) = stream else { return };
            service.metrics.connections.fetch_add(1, Relaxed);
            let inner = Arc::clone(&service);
            let handle = service_fn(move |request| {
                let service = Arc::clone(&inner);
                async move { Ok::<_, Infallible>(answer(service, request, way).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                // Beyond what is taken, so that most of what is too large gets an answer in the form of its route.
                .max_buf_size(128 << 10)
                .max_headers(1000)
                .serve_connection(TokioIo::new(Worded::new(Timed::new(stream), Arc::clone(&service))), handle);
            let mut connection = std::pin::pin!(connection);
            let draining = tokio::select! {
                _ = connection.as_mut() => false,
                () = reached(&mut phase, Phase::Draining) => true,
            };
            if draining {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    _ = connection.as_mut() => {}
                    () = reached(&mut phase, Phase::Over) => {
                        // The last words of streams that were ended.
                        drop(tokio::time::timeout(Duration::from_millis(100), connection.as_mut()).await);
                    }
                }
            }
            service.metrics.connections.fetch_sub(1, Relaxed);
        });
    }
}
