//! Every function of MLX has its place: a case calls it, or a row here does, or it is said to come later.

use lapis::distributed::{self, Group};
use lapis::dtype::{Category, isdtype, issubdtype};
use lapis::stream::{
    Device, DeviceKind, Stream, ThreadLocalStream, default_device, default_stream, set_default_device,
    set_default_stream,
};
use lapis::{Array, Dtype, array, graph, io, memory, ops, print, transforms};
use lapis_testdata::{families, load, load_names};
use std::collections::BTreeSet;

/// Names that stand for another one.
const ALIASES: &[(&str, &str)] = &[
    ("acos", "arccos"),
    ("acosh", "arccosh"),
    ("asin", "arcsin"),
    ("asinh", "arcsinh"),
    ("atan", "arctan"),
    ("atan2", "arctan2"),
    ("atanh", "arctanh"),
    ("bitwise_left_shift", "left_shift"),
    ("bitwise_right_shift", "right_shift"),
    ("concat", "concatenate"),
    ("conj", "conjugate"),
    ("cumulative_prod", "cumprod"),
    ("cumulative_sum", "cumsum"),
    ("empty", "zeros"),
    ("empty_like", "zeros_like"),
    ("matrix_norm", "linalg.norm"),
    ("new_thread_unsafe_stream", "new_stream"),
    ("pow", "power"),
];

/// What lapis does not have yet.
const LATER: &[(&str, &[&str])] = &[
    ("kernels of the user's own", &["fast.cuda_kernel", "fast.metal_kernel", "fast.precompiled_cuda_kernel"]),
    ("arrays of other frameworks", &["from_dlpack"]),
];

fn a() -> Array {
    array([1.0f32, 2.0])
}

fn square(x: &Array) -> Array {
    x.square().sum((), false)
}

fn alone() -> Group {
    distributed::init(false).unwrap()
}

/// A place where nothing can be written.
const NOWHERE: &str = "no-such-folder/file";

macro_rules! rows {
    ($($name:literal => $call:expr;)*) => {
        &[$(($name, || { let _ = $call; })),*]
    };
}

/// Functions that are no operations on arrays, each with a call.
#[rustfmt::skip]
const CALLED: &[(&str, fn())] = rows! {
    "asarray" => array([1, 2]);
    "async_eval" => lapis::async_eval([&a()]);
    "can_cast" => assert!(Dtype::Int8.can_cast(Dtype::Int16) && !Dtype::Int16.can_cast(Dtype::Int8));
    "checkpoint" => transforms::checkpoint(square)(&a()).unwrap();
    "clear_cache" => memory::clear_cache();
    "clear_streams" => lapis::clear_streams();
    "compile" => transforms::compile(square).call(&a()).unwrap();
    "default_device" => assert_eq!(default_device(), Device::CPU);
    "default_stream" => assert_eq!(default_stream(Device::CPU), Stream::of(Device::CPU));
    "depends" => ops::depends(&[a()], &[a()]).unwrap();
    "device_count" => assert_eq!(Device::count(DeviceKind::Cpu), 1);
    "device_info" => assert_eq!(Device::CPU.info().unwrap().architecture, std::env::consts::ARCH);
    // For the whole process: tests/switch.rs calls it in one of its own.
    "disable_compile" => { let _: fn() = transforms::disable_compile; };
    "enable_compile" => transforms::enable_compile();
    "eval" => lapis::eval([&a()]).unwrap();
    "export_function" => assert!(lapis::export_function(NOWHERE, square, &a()).is_err());
    "exporter" => transforms::Function::new().trace(square, &a()).unwrap();
    "export_to_dot" => assert!(graph::to_dot(&[("out", &(a() + 1.0))]).contains("add"));
    "get_active_memory" => memory::active();
    "get_array_buffer_size" => assert!(memory::array_buffer_size([&a()]).unwrap() >= 8);
    "get_cache_memory" => memory::cached();
    "get_memory_limit" => memory::limit();
    "get_peak_memory" => { lapis::eval([&(a() + 1.0)]).unwrap(); assert!(memory::peak() > 0) };
    "get_printoptions" => print::precision();
    "grad" => transforms::grad(square)(&a()).unwrap();
    "import_function" => assert!(lapis::import_function(NOWHERE).is_err());
    "is_available" => assert!(Device::CPU.is_available());
    "isdtype" => assert!(isdtype(Dtype::Uint8, "integral").unwrap() && !isdtype(Dtype::Bool, "numeric").unwrap());
    "issubdtype" => assert!(issubdtype(Dtype::Float16, Category::Inexact) && !issubdtype(Dtype::Bool, Category::Number));
    "jvp" => transforms::jvp(square, &a(), &a()).unwrap();
    "load" => assert!(io::load(NOWHERE, None).is_err());
    "new_stream" => Stream::new(Device::CPU).unwrap();
    "new_thread_local_stream" => {
        let stream = ThreadLocalStream::new(Device::CPU).unwrap();
        let there = std::thread::spawn(move || stream.here().unwrap()).join().unwrap();
        assert!(stream.here().unwrap() == stream.here().unwrap() && there != stream.here().unwrap());
    };
    "printoptions" => assert_eq!(print::with_precision(Some(2), || a().to_string()), "array([1.00, 2.00], dtype=float32)");
    "reset_peak_memory" => memory::reset_peak();
    "save" => assert!(io::save_npy(NOWHERE, &a()).is_err());
    "save_gguf" => assert!(io::save_gguf(NOWHERE, [(&"a", &a())], &io::GgufMetadata::new()).is_err());
    "save_safetensors" => assert!(io::save_safetensors(NOWHERE, [(&"a", &a())], &io::Metadata::new()).is_err());
    "savez" => assert!(io::save_npz(NOWHERE, [(&"a", &a())], false).is_err());
    "savez_compressed" => assert!(io::save_npz(NOWHERE, [(&"a", &a())], true).is_err());
    "set_cache_limit" => memory::set_cache_limit(memory::cache_limit());
    "set_default_device" => set_default_device(Device::CPU).unwrap();
    "set_default_stream" => set_default_stream(Stream::of(Device::CPU));
    "set_memory_limit" => memory::set_limit(memory::limit());
    "set_printoptions" => print::set_precision(print::precision());
    "set_wired_limit" => assert_eq!(memory::set_wired_limit(1), 0);
    "stream" => assert_eq!(Stream::of(Device::CPU).scope(Stream::current), Stream::of(Device::CPU));
    "synchronize" => lapis::synchronize(Stream::of(Device::CPU));
    "value_and_grad" => transforms::value_and_grad(square)(&a()).unwrap();
    "vjp" => transforms::vjp(square, &a(), &array(1.0f32)).unwrap();
    "vmap" => transforms::vmap(square)(&array([[1.0f32, 2.0]])).unwrap();
    "distributed.all_gather" => alone().all_gather(&a()).unwrap();
    "distributed.all_max" => alone().all_max(&a()).unwrap();
    "distributed.all_min" => alone().all_min(&a()).unwrap();
    "distributed.all_sum" => alone().all_sum(&a()).unwrap();
    "distributed.init" => assert!(distributed::init(true).is_err());
    "distributed.is_available" => assert!(!distributed::is_available());
    "distributed.recv" => assert!(alone().recv(&[2], Dtype::Float32, 1).is_err());
    "distributed.recv_like" => assert!(alone().recv_like(&a(), 1).is_err());
    "distributed.send" => assert!(alone().send(&a(), 1).is_err());
    "distributed.sum_scatter" => alone().sum_scatter(&a()).unwrap();
};

#[test]
fn every_function_of_mlx_has_its_place() {
    let mut places = BTreeSet::new();
    for family in families().unwrap() {
        places.extend(load(&family).unwrap().into_iter().map(|c| c.op));
    }
    for (name, call) in CALLED {
        assert!(places.insert((*name).to_string()), "{name} has two places");
        call();
    }
    for name in LATER.iter().flat_map(|(_, names)| *names) {
        assert!(places.insert((*name).to_string()), "{name} is there and does not come later");
    }
    let known =
        |name: &str| ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name).to_string();
    let mut missing = Vec::new();
    for (module, names) in load_names().unwrap() {
        let full = |name: &String| if module == "core" { name.clone() } else { format!("{module}.{name}") };
        missing.extend(names.iter().map(full).filter(|name| !places.contains(&known(name))));
    }
    assert!(missing.is_empty(), "without a place: {missing:?}");
}
