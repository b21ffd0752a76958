//! Open MPI's library behind a safe interface: bytes between processes.
//!
//! It is opened at run time, as MLX does it, so that programs with this crate start on machines without it. Handles of Open MPI 4
//! and 5 are addresses of objects in the library, by these names. Calls are made one at a time, whatever thread makes them.

use lapis_core::error::{Error, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, OnceLock, PoisonError};

const NAMES: [&CStr; 4] = [c"libmpi.so.40", c"libmpi.so", c"libmpi.40.dylib", c"libmpi.dylib"];
/// `MPI_THREAD_SERIALIZED`.
const SERIALIZED: c_int = 2;
/// `MPI_MAX_LIBRARY_VERSION_STRING`.
const VERSION: usize = 256;

/// An address in the library.
#[derive(Clone, Copy)]
struct Handle(*mut c_void);
// SAFETY: what lies there is the library's, which is asked by one thread at a time.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

macro_rules! functions {
    ($($field:ident $symbol:literal ($($argument:ty),*);)*) => {
        /// The functions of the library that are used.
        struct Library {
            world: Handle,
            byte: Handle,
            $($field: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Library {
            /// What the functions are called, and what they take, is MPI's standard; that handles are addresses is checked.
            fn of(library: Handle) -> Result<Library> {
                // SAFETY: the symbols are functions of these arguments in every library that passes `is_open_mpi`; until it
                // has passed none but `MPI_Get_library_version` is called.
                unsafe {
                    Ok(Library {
                        world: symbol(library, c"ompi_mpi_comm_world")?,
                        byte: symbol(library, c"ompi_mpi_byte")?,
                        $($field: std::mem::transmute::<
                            *mut c_void,
                            unsafe extern "C" fn($($argument),*) -> c_int,
                        >(symbol(library, $symbol)?.0),)*
                    })
                }
            }
        }
    };
}

functions! {
    version c"MPI_Get_library_version" (*mut c_char, *mut c_int);
    init c"MPI_Init_thread" (*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int);
    finalize c"MPI_Finalize" ();
    abort c"MPI_Abort" (*mut c_void, c_int);
    rank c"MPI_Comm_rank" (*mut c_void, *mut c_int);
    size c"MPI_Comm_size" (*mut c_void, *mut c_int);
    split c"MPI_Comm_split" (*mut c_void, c_int, c_int, *mut *mut c_void);
    all_gather c"MPI_Allgather" (*const c_void, c_int, *mut c_void, *mut c_void, c_int, *mut c_void, *mut c_void);
    all_to_all c"MPI_Alltoall" (*const c_void, c_int, *mut c_void, *mut c_void, c_int, *mut c_void, *mut c_void);
    broadcast c"MPI_Bcast" (*mut c_void, c_int, *mut c_void, c_int, *mut c_void);
    send c"MPI_Send" (*const c_void, c_int, *mut c_void, c_int, c_int, *mut c_void);
    receive c"MPI_Recv" (*mut c_void, c_int, *mut c_void, c_int, c_int, *mut c_void, *mut c_void);
}

fn symbol(library: Handle, name: &CStr) -> Result<Handle> {
    // SAFETY: `library` came from dlopen and is never closed; the name ends with a zero.
    let found = unsafe { libc::dlsym(library.0, name.as_ptr()) };
    if found.is_null() {
        let name = name.to_string_lossy();
        return Err(Error::device(format!("[mpi] the library for MPI lacks {name}; Open MPI 4 or 5 is needed")));
    }
    Ok(Handle(found))
}

fn open() -> Result<Library> {
    // SAFETY: loading runs the library's initialisers, which is what loading Open MPI means. Its parts find it by global names.
    let open = |name: &&CStr| unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    let Some(found) = NAMES.iter().map(open).find(|found| !found.is_null()) else {
        let name = NAMES[if cfg!(target_os = "macos") { 2 } else { 0 }].to_string_lossy();
        return Err(Error::device(format!(
            "[mpi] {name} is not found: install Open MPI (apt-get install openmpi-bin, brew install open-mpi), or name its \
             folder in LD_LIBRARY_PATH"
        )));
    };
    let library = Library::of(Handle(found))?;
    let (mut text, mut length) = ([0 as c_char; VERSION], 0);
    // SAFETY: the buffer has the length that MPI's standard asks for; nothing has to be initialised before.
    unsafe { (library.version)(text.as_mut_ptr(), &mut length) };
    let text: String = text.iter().take_while(|&&c| c != 0).map(|&c| c as u8 as char).collect();
    match text.starts_with("Open MPI") {
        true => Ok(library),
        false => {
            let shown = text.lines().next().unwrap_or_default();
            Err(Error::device(format!("[mpi] the library for MPI is {shown:?}; Open MPI is needed")))
        }
    }
}

fn library() -> Result<&'static Library> {
    static LIBRARY: OnceLock<Result<Library>> = OnceLock::new();
    LIBRARY.get_or_init(open).as_ref().map_err(Clone::clone)
}

/// Whether there is a library that can be used.
pub(crate) fn is_here() -> bool {
    library().is_ok()
}

/// One call at a time; true once MPI is initialised and until it is finalized.
static RUNS: Mutex<bool> = Mutex::new(false);

/// A call of MPI. Errors end all processes with a message, as MPI does by default; what comes back all the same is told.
fn call(name: &str, f: impl FnOnce(&Library) -> c_int) -> Result<()> {
    let library = library()?;
    let runs = RUNS.lock().unwrap_or_else(PoisonError::into_inner);
    if !*runs {
        return Err(Error::device(format!("[mpi] {name}: this process has left its group")));
    }
    match f(library) {
        0 => Ok(()),
        code => Err(Error::device(format!("[mpi] {name} failed with code {code}"))),
    }
}

/// Says that this process ends well.
pub(crate) fn finalize() {
    let mut runs = RUNS.lock().unwrap_or_else(PoisonError::into_inner);
    if let (true, Ok(library)) = (*runs, library()) {
        *runs = false;
        // SAFETY: initialised, and not finalized before; no other call follows.
        unsafe { (library.finalize)() };
    }
}

/// Ends all processes. Waits for no call of another thread: it may never end.
pub(crate) fn abort(code: u8) -> ! {
    if let Ok(library) = library() {
        // SAFETY: it does not come back; the process is over whatever another thread does.
        unsafe { (library.abort)(library.world.0, c_int::from(code)) };
    }
    std::process::exit(code.into())
}

/// Processes that can reach each other.
#[derive(Clone, Copy)]
pub(crate) struct Comm {
    handle: Handle,
    /// The number of this one.
    pub(crate) rank: usize,
    /// How many there are.
    pub(crate) size: usize,
}

/// A length as MPI counts.
fn count(bytes: usize) -> Result<c_int> {
    c_int::try_from(bytes).map_err(|_| Error::device(format!("[mpi] {bytes} bytes are too many for one exchange")))
}

impl Comm {
    /// All processes that were started together. Initialises MPI: to be called once.
    pub(crate) fn world() -> Result<Comm> {
        let library = library()?;
        let mut runs = RUNS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut level = 0;
        // SAFETY: MPI takes null for the arguments of the program; `level` is written.
        let code = unsafe { (library.init)(null_mut(), null_mut(), SERIALIZED, &mut level) };
        if code != 0 || level < SERIALIZED {
            return Err(Error::device(format!("[mpi] MPI_Init_thread failed: code {code}, threads at level {level}")));
        }
        *runs = true;
        drop(runs);
        Comm::of(library.world)
    }

    fn of(handle: Handle) -> Result<Comm> {
        let (mut rank, mut size) = (0, 0);
        // SAFETY: `handle` is one of a communicator; both numbers are written.
        call("MPI_Comm_rank", |l| unsafe { (l.rank)(handle.0, &mut rank) })?;
        // SAFETY: as above.
        call("MPI_Comm_size", |l| unsafe { (l.size)(handle.0, &mut size) })?;
        Ok(Comm { handle, rank: rank as usize, size: size as usize })
    }

    /// Those that say the same number.
    pub(crate) fn split(self, color: usize) -> Result<Comm> {
        let (mut part, color) = (null_mut(), count(color)?);
        // SAFETY: the new communicator is written to `part` and never freed.
        call("MPI_Comm_split", |l| unsafe { (l.split)(self.handle.0, color, self.rank as c_int, &mut part) })?;
        Comm::of(Handle(part))
    }

    /// `to` are the `from` of all, one after the other.
    pub(crate) fn all_gather(self, from: &[u8], to: &mut [u8]) -> Result<()> {
        assert_eq!(to.len(), from.len() * self.size);
        let n = count(from.len())?;
        call("MPI_Allgather", |l| {
            let (byte, comm) = (l.byte.0, self.handle.0);
            // SAFETY: MPI reads `n` bytes and writes `n` for each process, which is checked above.
            unsafe { (l.all_gather)(from.as_ptr().cast(), n, byte, to.as_mut_ptr().cast(), n, byte, comm) }
        })
    }

    /// Part `r` of `from` goes to process `r`; `to` are the parts for this one, in the order of ranks.
    pub(crate) fn all_to_all(self, from: &[u8], to: &mut [u8]) -> Result<()> {
        assert_eq!(to.len(), from.len());
        assert!(from.len().is_multiple_of(self.size));
        let n = count(from.len() / self.size)?;
        call("MPI_Alltoall", |l| {
            let (byte, comm) = (l.byte.0, self.handle.0);
            // SAFETY: MPI reads and writes `n` bytes for each process, which both slices have.
            unsafe { (l.all_to_all)(from.as_ptr().cast(), n, byte, to.as_mut_ptr().cast(), n, byte, comm) }
        })
    }

    /// `bytes` are those of process `from`.
    pub(crate) fn broadcast(self, bytes: &mut [u8], from: usize) -> Result<()> {
        let (n, from) = (count(bytes.len())?, count(from)?);
        call("MPI_Bcast", |l| {
            // SAFETY: MPI reads or writes `n` bytes.
            unsafe { (l.broadcast)(bytes.as_mut_ptr().cast(), n, l.byte.0, from, self.handle.0) }
        })
    }

    /// Sends to a process.
    pub(crate) fn send(self, bytes: &[u8], to: usize) -> Result<()> {
        let (n, to) = (count(bytes.len())?, count(to)?);
        call("MPI_Send", |l| {
            // SAFETY: MPI reads `n` bytes.
            unsafe { (l.send)(bytes.as_ptr().cast(), n, l.byte.0, to, 0, self.handle.0) }
        })
    }

    /// Receives as many bytes from a process.
    pub(crate) fn receive(self, bytes: &mut [u8], from: usize) -> Result<()> {
        let (n, from) = (count(bytes.len())?, count(from)?);
        call("MPI_Recv", |l| {
            let ignored = null::<c_void>().cast_mut();
            // SAFETY: MPI writes `n` bytes at most; a null status is MPI_STATUS_IGNORE in Open MPI.
            unsafe { (l.receive)(bytes.as_mut_ptr().cast(), n, l.byte.0, from, 0, self.handle.0, ignored) }
        })
    }
}
