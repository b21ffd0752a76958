//! Devices and streams: where and in which order ops run.
//!
//! An array has no device; an op has a stream. Ops of one stream run in the order in which they were submitted;
//! across streams only data orders them. Streams work from every thread.

use crate::error::{Error, Result};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What kind of processor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum DeviceKind {
    /// The host's processors.
    Cpu = 0,
    /// A graphics processor.
    Gpu = 1,
}

/// A processor that runs ops.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Device {
    /// The kind.
    pub kind: DeviceKind,
    /// Which one of its kind.
    pub index: u16,
}

impl Device {
    /// The first CPU device: always there.
    pub const CPU: Device = Device { kind: DeviceKind::Cpu, index: 0 };
    /// The first GPU device.
    pub const GPU: Device = Device { kind: DeviceKind::Gpu, index: 0 };

    /// Whether a linked backend serves this device.
    pub fn is_available(self) -> bool {
        crate::backend::find(self).is_ok()
    }

    /// How many devices of `kind` the linked backends serve.
    pub fn count(kind: DeviceKind) -> usize {
        (0..).take_while(|&index| Device { kind, index }.is_available()).count()
    }

    /// What is known about the device (`mx.device_info`).
    ///
    /// # Errors
    /// A device error when no linked backend serves it.
    pub fn info(self) -> Result<DeviceInfo> {
        crate::backend::find(self).map(|backend| backend.info())
    }
}

/// A device in words and numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// The maker's name of it.
    pub name: String,
    /// Its family: `x86_64`, `aarch64`, ...
    pub architecture: String,
    /// Bytes of memory of its own; `None` for a device that shares the host's.
    pub memory: Option<u64>,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Gpu => "gpu",
        };
        write!(f, "Device({kind}, {})", self.index)
    }
}

/// A queue of ops on a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stream {
    pub(crate) device: Device,
    pub(crate) id: u32,
}

static NEXT_STREAM: AtomicU32 = AtomicU32::new(2);
static DEFAULT_DEVICE: AtomicU64 = AtomicU64::new(0);
thread_local! {
    static CURRENT: Cell<Option<Stream>> = const { Cell::new(None) };
}

impl Stream {
    /// A new stream on `device`.
    ///
    /// # Errors
    /// A device error when no linked backend serves the device.
    pub fn new(device: Device) -> Result<Stream> {
        if !device.is_available() {
            return Err(Error::device(format!("[new_stream] there is no {device}; link a backend that serves it")));
        }
        Ok(Stream { device, id: NEXT_STREAM.fetch_add(1, Ordering::Relaxed) })
    }

    /// The stream that ops of this device use when none is chosen.
    pub fn of(device: Device) -> Stream {
        Stream { device, id: device.kind as u32 }
    }

    /// The stream of ops built now on this thread.
    pub fn current() -> Stream {
        CURRENT.get().unwrap_or_else(|| Stream::of(default_device()))
    }

    /// The device it belongs to.
    pub fn device(self) -> Device {
        self.device
    }

    /// Runs `f` with this stream as the one that ops are built on (this thread only).
    pub fn scope<T>(self, f: impl FnOnce() -> T) -> T {
        struct Restore(Option<Stream>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _restore = Restore(CURRENT.replace(Some(self)));
        f()
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({}, {})", self.device, self.id)
    }
}

/// A handle that stands for another stream on each thread (`mx.new_thread_local_stream`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ThreadLocalStream {
    device: Device,
    id: u32,
}

impl ThreadLocalStream {
    /// A new handle on `device`.
    ///
    /// # Errors
    /// As [`Stream::new`].
    pub fn new(device: Device) -> Result<ThreadLocalStream> {
        let Stream { device, id } = Stream::new(device)?;
        Ok(ThreadLocalStream { device, id })
    }

    /// The stream of the calling thread: made at its first use there.
    ///
    /// # Errors
    /// As [`Stream::new`].
    pub fn here(self) -> Result<Stream> {
        thread_local! {
            static STREAMS: RefCell<Vec<(u32, Stream)>> = const { RefCell::new(Vec::new()) };
        }
        STREAMS.with_borrow_mut(|streams| {
            if let Some((_, stream)) = streams.iter().find(|(id, _)| *id == self.id) {
                return Ok(*stream);
            }
            let stream = Stream::new(self.device)?;
            streams.push((self.id, stream));
            Ok(stream)
        })
    }
}

/// The stream that this thread's ops on `device` go to.
pub fn default_stream(device: Device) -> Stream {
    match CURRENT.get() {
        Some(s) if s.device == device => s,
        _ => Stream::of(device),
    }
}

/// Makes `stream` the default of this thread.
pub fn set_default_stream(stream: Stream) {
    CURRENT.set(Some(stream));
}

/// The device of ops when nothing else is said; one for the whole process.
pub fn default_device() -> Device {
    let v = DEFAULT_DEVICE.load(Ordering::Relaxed);
    Device { kind: if v >> 16 == 0 { DeviceKind::Cpu } else { DeviceKind::Gpu }, index: v as u16 }
}

/// Changes the default device of the process.
///
/// # Errors
/// A device error when no linked backend serves it.
pub fn set_default_device(device: Device) -> Result<()> {
    if !device.is_available() {
        return Err(Error::device(format!("[set_default_device] there is no {device}")));
    }
    DEFAULT_DEVICE.store((device.kind as u64) << 16 | u64::from(device.index), Ordering::Relaxed);
    Ok(())
}
