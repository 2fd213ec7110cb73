//! The exit dump: what was allocated, and what is live, written when the process ends.
//! Called by: the C library at `exit` and on return from `main`, once `start` has registered it.
//!
//! X1: it changes no exit status and needs no descriptor but the one it writes to; a closed stderr or a full disk makes
//!     the dump short or empty, nothing else.
//! X2: it allocates nothing, so it does not change what it counts.
//! X3: in headers mode, blocks that still wait in the quarantine are looked at first: what was written there is a fault.

use crate::report::Line;
use crate::start::{HEAP, own_cache, settings};
use crate::tls::Inside;
use crate::value::{Headers, StatsFormat};
use crate::{headed, nested, quarantine, stacks};
use core::ffi::CStr;
use core::fmt::{self, Write};
use nearheap_numa::lock::Lock;
use nearheap_numa::os;
use nearheap_stats::{DEFAULT_PREFIX, Snapshot};

/// Too large for a small stack.
static SNAPSHOT: Lock<Snapshot> = Lock::new(Snapshot::new());

/// Registered before anything of the program's, so it runs after all of that.
pub(crate) fn register() {
    extern "C" fn at_exit() {
        let inside = Inside::enter();
        nested::drain(&inside);
        if headed::is_on() {
            quarantine::drain(own_cache(&inside));
        }
        let live = headed::is_on() && settings().values.headers == Headers::Leaks;
        if live || settings().values.stats != StatsFormat::Off {
            tell(live);
        }
    }
    // SAFETY: the handler is a function that lives as long as the process. Where there is no memory to register it, there
    // is no dump.
    let _ = unsafe { libc::atexit(at_exit) };
}

/// Gathers what the writers write into larger pieces.
struct Writer {
    fd: i32,
    buffer: [u8; 1024],
    len: usize,
}

impl Writer {
    fn new(fd: i32) -> Self {
        Self { fd, buffer: [0; 1024], len: 0 }
    }

    fn flush(&mut self) {
        os::write(self.fd, self.buffer.get(..self.len).unwrap_or_default());
        self.len = 0;
    }
}

impl Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.as_bytes().chunks(self.buffer.len()) {
            if self.len + part.len() > self.buffer.len() {
                self.flush();
            }
            if let Some(to) = self.buffer.get_mut(self.len..self.len + part.len()) {
                to.copy_from_slice(part);
                self.len += part.len();
            }
        }
        Ok(())
    }
}

/// Writes the statistics where they are asked for, and what is `live` to standard error.
fn tell(live: bool) {
    // Held only where this process was forked in the middle of its parent's dump.
    let Some(mut snapshot) = SNAPSHOT.try_lock() else { return };
    HEAP.snapshot(&mut snapshot);
    if settings().values.stats != StatsFormat::Off {
        dump(&snapshot);
    }
    if live {
        let mut writer = Writer::new(2);
        // The writer itself never errs (X1).
        let _ = snapshot.write_live(&mut writer).and_then(|()| stacks::write(&mut writer));
        writer.flush();
    }
}

fn dump(snapshot: &Snapshot) {
    let file = settings().stats_file();
    let fd = match file.map(open) {
        Some(Ok(fd)) => fd,
        Some(Err(os::Errno(errno))) => {
            if !settings().values.quiet {
                let mut line = Line::new();
                let name = file.unwrap_or_default().escape_ascii();
                line.push_at_most(200, format_args!("nearheap: NEARHEAP_STATS_FILE: {name}"));
                line.push(format_args!(": cannot be written, error {errno}"));
                os::write(2, line.finish());
            }
            return;
        }
        None => 2,
    };
    let mut writer = Writer::new(fd);
    // As in `tell`.
    let _ = write(snapshot, settings().values.stats, &mut writer);
    writer.flush();
    if fd != 2 {
        os::close(fd);
    }
}

fn write(snapshot: &Snapshot, format: StatsFormat, w: &mut Writer) -> fmt::Result {
    match format {
        StatsFormat::Off => Ok(()),
        StatsFormat::Text => snapshot.write_text(w, |each| HEAP.each_thread(each)),
        StatsFormat::Json => snapshot.write_json(w, |each| HEAP.each_thread(each)),
        StatsFormat::OpenMetrics => snapshot.write_openmetrics(w, DEFAULT_PREFIX),
    }
}

/// Opens the file of the dump, with `%p` replaced by the process and `%%` by `%`.
fn open(pattern: &[u8]) -> Result<i32, os::Errno> {
    let mut path = [0; 1280];
    let too_long = os::Errno(libc::ENAMETOOLONG);
    let len = expand(pattern, os::pid(), &mut path).ok_or(too_long)?;
    let path = path.get(..=len).and_then(|p| CStr::from_bytes_with_nul(p).ok()).ok_or(too_long)?;
    os::create(path)
}

/// The length of the expanded pattern; a zero follows it.
fn expand(pattern: &[u8], pid: u32, into: &mut [u8]) -> Option<usize> {
    let mut digits = Line::new();
    digits.push(format_args!("{pid}"));
    let mut len = 0;
    let mut rest = pattern;
    while let Some((&byte, after)) = rest.split_first() {
        let (text, after) = match (byte, after.split_first()) {
            (b'%', Some((b'p', after))) => (digits.as_bytes(), after),
            (b'%', Some((b'%', after))) => (&b"%"[..], after),
            _ => (core::slice::from_ref(&byte), after),
        };
        into.get_mut(len..len + text.len())?.copy_from_slice(text);
        len += text.len();
        rest = after;
    }
    *into.get_mut(len)? = 0;
    Some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C library takes a handler off its list before it calls it, so a child that was forked in the middle of the
    /// dump doesn't come here again by itself. Whatever brings it here, it ends.
    #[test]
    fn a_dump_in_the_middle_of_another_one_ends() {
        let inside = SNAPSHOT.lock();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            tell(true);
            done.send(()).unwrap();
        });
        let ended = is_done.recv_timeout(std::time::Duration::from_secs(10));
        drop(inside);
        assert_eq!(ended, Ok(()));
    }

    #[test]
    fn names_take_the_process_and_stay_within_bounds() {
        let mut into = [1; 16];
        assert_eq!(expand(b"a.%p.%%", 417, &mut into), Some(7));
        assert_eq!(&into[..8], b"a.417.%\0");
        assert_eq!(expand(&[b'x'; 16], 1, &mut into), None, "no room for the zero");
    }
}
