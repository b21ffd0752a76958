//! Saving over an old file while the process is killed, or while the disk fills up: the old file or the new one.
#![cfg(unix)]

use lapis_core::array::Array;
use lapis_io::{Arrays, Metadata, load_safetensors, save_npz, save_safetensors};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How the child process learns what to do: `WORK`, and `TARGET` for the file.
const WORK: &str = "LAPIS_TRIAL_WORK";
const TARGET: &str = "LAPIS_TRIAL_TARGET";

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("lapis-io-trials-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).expect("a writable temporary directory");
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Three arrays and metadata that all say `version`.
fn save(path: &Path, version: u32) -> lapis_core::Result<()> {
    let array = |n: usize| Array::from_vec(vec![version; n], &[n]);
    let arrays: Arrays = [("a", 1), ("b", 100_000), ("c", 7)].map(|(k, n)| (k.to_string(), array(n))).into();
    let metadata: Metadata = [("version".to_string(), version.to_string())].into();
    save_safetensors(path, &arrays, &metadata)
}

/// The version of a file, all parts of which must agree.
#[track_caller]
fn version(path: &Path) -> u32 {
    let (arrays, metadata) = load_safetensors(path).unwrap();
    let version: u32 = metadata["version"].parse().unwrap();
    assert_eq!(arrays.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    for (name, a) in &arrays {
        assert!(a.to_vec::<u32>().unwrap().iter().all(|&v| v == version), "{name} is not of version {version}");
    }
    version
}

/// This very program as another process, running [`child`]. `shell` is what a shell does before it becomes the child.
fn start(shell: &str, work: &str, target: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{shell}\nexec \"$0\" \"$@\"")]).arg(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--nocapture"]).env(WORK, work).env(TARGET, target);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The work of the child process; nothing when the tests are run as tests.
#[test]
fn child() {
    let (Ok(work), Some(target)) = (std::env::var(WORK), std::env::var_os(TARGET)) else { return };
    let target = Path::new(&target);
    match work.as_str() {
        "forever" => {
            println!("started");
            // Not longer than any trial, should the parent be gone.
            let (begin, first) = (Instant::now(), version(target) + 1);
            (first..).take_while(|_| begin.elapsed() < Duration::from_secs(10)).for_each(|v| save(target, v).unwrap());
        }
        "safetensors" => println!("{:?}", save(target, 2).map_err(|e| e.message().to_string())),
        // Noise, which does not become smaller.
        _ => {
            let noise = (0..100_000u32).map(|i| i.wrapping_mul(2_654_435_769).rotate_left(i % 32)).collect();
            let arrays: Arrays = [("a".to_string(), Array::from_vec(noise, &[100_000]))].into();
            println!("{:?}", save_npz(target, &arrays, true).map_err(|e| e.message().to_string()));
        }
    }
}

#[test]
fn a_killed_process_leaves_the_old_file_or_the_new_one() {
    let dir = scratch("kill");
    let path = dir.join("model.safetensors");
    save(&path, 1).unwrap();
    let (begin, mut last, mut partial) = (Instant::now(), 1, 0);
    // As many trials as fit the time, and enough to say something.
    for trial in 0..200 {
        if trial >= 20 && begin.elapsed() > Duration::from_secs(3) {
            break;
        }
        let mut child = start("", "forever", &path).spawn().unwrap();
        let mut said = child.stdout.take().unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"started\n") {
            let mut byte = [0];
            assert_eq!(said.read(&mut byte).unwrap(), 1, "the child ended: {}", String::from_utf8_lossy(&text));
            text.push(byte[0]);
        }
        std::thread::sleep(Duration::from_micros(trial * 7919 % 5000));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = version(&path);
        assert!(now >= last, "version {now} after {last}");
        last = now;
        partial += usize::from(names(&dir).contains(&".model.safetensors.partial".to_string()));
    }
    assert!(partial > 0, "no process was killed in the middle of writing");
    // What the dead left behind hinders nobody and goes with the next save.
    save(&path, last + 1).unwrap();
    assert_eq!((version(&path), names(&dir)), (last + 1, vec!["model.safetensors".to_string()]));
    std::fs::remove_dir_all(dir).unwrap();
}

/// The save fails, says `why` and where, and the file is the old one, with nothing beside it.
#[track_caller]
fn fails(out: &Output, path: &Path, why: &str) {
    let said = String::from_utf8_lossy(&out.stdout);
    let error = said.lines().find_map(|l| l.split_once("Err(")).map(|(_, e)| e.to_string());
    let error = error.unwrap_or_else(|| panic!("no error: {said}{}", String::from_utf8_lossy(&out.stderr)));
    assert!(error.contains(&path.display().to_string()) && error.contains(why), "{error}");
}

#[test]
fn a_write_that_fails_leaves_the_old_file() {
    let dir = scratch("limit");
    let path = dir.join("model.safetensors");
    save(&path, 1).unwrap();
    // Files may grow to 64 blocks; the signal that says so is ignored, so that writing fails instead.
    let out = start("trap '' XFSZ; ulimit -f 64", "safetensors", &path).output().unwrap();
    fails(&out, &path, "File too large");
    assert_eq!((version(&path), names(&dir)), (1, vec!["model.safetensors".to_string()]));
    std::fs::remove_dir_all(dir).unwrap();
}

/// On a file system of 256 KiB, where this user may make one.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_leaves_the_old_file() {
    let dir = scratch("full");
    let inside = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "tmpfs"]).arg(&dir).output();
    if !inside.is_ok_and(|out| out.status.success()) {
        println!("no file system can be made here: a full disk was not tried");
        std::fs::remove_dir_all(dir).unwrap();
        return;
    }
    let mount = format!("mount -t tmpfs -o size=256k tmpfs '{0}' && echo old > '{0}/a.npz'", dir.display());
    let after = format!("; \"$0\" \"$@\"; cat '{0}/a.npz'; ls -A '{0}'", dir.display());
    // Size known beforehand: refused before anything is written. Unknown: the write fails.
    for (work, name, why) in [("safetensors", "a.safetensors", "needs 390.9 KiB"), ("npz", "a.npz", "No space left")] {
        let path = dir.join(name);
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", &format!("{mount}{after}")]).arg(std::env::current_exe().unwrap());
        command.args(["child", "--exact", "--nocapture"]).env(WORK, work).env(TARGET, &path);
        let out = command.output().unwrap();
        fails(&out, &path, why);
        assert!(String::from_utf8_lossy(&out.stdout).ends_with("old\na.npz\n"), "{out:?}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}
