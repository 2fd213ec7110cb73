//! A kernel that refuses on command: the real one behind a script.
//! Owns: `FakeOs`. Called by: tests, which fail the n-th call, every call, or see an OS page of another size or a machine
//! with other NUMA nodes.
//!
//! It knows what is mapped: a call on anything else ends the test, and what is left is unmapped with it.

use crate::nodes::NodeSet;
use crate::os::{Errno, Linux, Os};
use crate::placement::Placement;
use core::ffi::CStr;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::borrow::ToOwned;
use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

/// Mapped ranges: from where to where, as they were mapped and cut.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<usize, usize>);

impl Ranges {
    fn add(&mut self, at: NonNull<u8>, len: usize) {
        self.0.insert(at.as_ptr() as usize, at.as_ptr() as usize + len);
    }

    /// The mapping that all of `[at, at + len)` is in.
    fn around(&self, at: NonNull<u8>, len: usize) -> (usize, usize) {
        let at = at.as_ptr() as usize;
        let found = self.0.range(..=at).next_back().map(|(&from, &to)| (from, to));
        let (from, to) = found.unwrap_or_default();
        assert!(len > 0 && at + len <= to, "{at:#x} and {len} bytes on: not mapped as a whole");
        (from, to)
    }

    fn remove(&mut self, at: NonNull<u8>, len: usize) {
        let (from, to) = self.around(at, len);
        let (at, end) = (at.as_ptr() as usize, at.as_ptr() as usize + len);
        self.0.remove(&from);
        if from < at {
            self.0.insert(from, at);
        }
        if end < to {
            self.0.insert(end, to);
        }
    }
}

/// A NUMA node, as the kernel writes about it.
#[derive(Clone, Copy, Debug)]
pub struct FakeNode {
    /// Its number.
    pub node: u8,
    /// Its CPUs, such as `0-1,8`; empty for none.
    pub cpus: &'static str,
    /// KiB of its memory.
    pub kib: u64,
    /// Its distances to all nodes, such as `10 21`.
    pub distances: &'static str,
}

/// What the machine says of its nodes.
#[derive(Debug)]
struct Machine {
    allowed: Result<NodeSet, Errno>,
    files: BTreeMap<String, String>,
    cpu: Option<usize>,
    knows_weights: bool,
    placed: Vec<(usize, usize, Placement)>,
}

/// The real kernel with a script of refusals.
#[derive(Debug)]
pub struct FakeOs {
    page: usize,
    calls: AtomicUsize,
    fail_at: AtomicUsize,
    fail_all: AtomicBool,
    fail_late: AtomicBool,
    during_purge: Mutex<Option<fn()>>,
    ranges: Mutex<Ranges>,
    now: AtomicU64,
    machine: Mutex<Machine>,
}

impl Drop for FakeOs {
    fn drop(&mut self) {
        for (&from, &to) in &self.ranges().0 {
            if let Some(at) = NonNull::new(with_exposed_provenance_mut(from)) {
                // SAFETY: mapped here; whoever used it is gone with this value. A refusal leaves it to the process's end.
                let _ = unsafe { Linux.unmap(at, to - from) };
            }
        }
    }
}

impl Default for FakeOs {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeOs {
    /// A kernel that refuses nothing, with the real page size, at time 1.
    pub fn new() -> Self {
        Self::with_pages(Linux.page_size())
    }

    /// A kernel whose OS page is `page` bytes, or the real one's where that is larger.
    pub fn with_pages(page: usize) -> Self {
        Self {
            page: page.max(Linux.page_size()),
            calls: AtomicUsize::new(0),
            fail_at: AtomicUsize::new(0),
            fail_all: AtomicBool::new(false),
            fail_late: AtomicBool::new(false),
            during_purge: Mutex::new(None),
            ranges: Mutex::default(),
            now: AtomicU64::new(1),
            machine: Mutex::new(Machine {
                allowed: Ok(NodeSet::of(&[0])),
                files: BTreeMap::new(),
                cpu: Some(0),
                knows_weights: false,
                placed: Vec::new(),
            }),
        }
    }

    /// Makes it a machine with these nodes, of which all memory may be used.
    pub fn set_nodes(&self, nodes: &[FakeNode]) {
        let online = nodes.iter().fold(NodeSet::NONE, |set, n| set.with(n.node));
        let with_memory = nodes.iter().filter(|n| n.kib > 0);
        self.allow(Ok(with_memory.fold(NodeSet::NONE, |set, n| set.with(n.node))));
        self.machine().files.clear();
        self.set_file("online", Some(&format!("{online}\n")));
        for &FakeNode { node, cpus, kib, distances } in nodes {
            self.set_file(&format!("node{node}/cpulist"), Some(&format!("{cpus}\n")));
            self.set_file(&format!("node{node}/distance"), Some(&format!("{distances}\n")));
            let free = kib / 2;
            let text = format!(
                "Node {node} MemTotal:       {kib} kB\nNode {node} MemFree:  {free} kB\nNode {node} HugePages_Total:     0\n"
            );
            self.set_file(&format!("node{node}/meminfo"), Some(&text));
        }
    }

    /// Gives a file this text, or takes it away. Its name is one below `/sys/devices/system/node`, or begins with a slash.
    pub fn set_file(&self, name: &str, text: Option<&str>) {
        let path = match name.starts_with('/') {
            true => name.to_owned(),
            false => format!("/sys/devices/system/node/{name}"),
        };
        let mut machine = self.machine();
        match text {
            Some(text) => machine.files.insert(path, text.to_owned()),
            None => machine.files.remove(&path),
        };
    }

    /// Changes which nodes the process may use, or refuses to say.
    pub fn allow(&self, nodes: Result<NodeSet, Errno>) {
        self.machine().allowed = nodes;
    }

    /// Moves all threads to a CPU, or refuses to say where they are.
    pub fn set_cpu(&self, cpu: Option<usize>) {
        self.machine().cpu = cpu;
    }

    /// Makes it a kernel that can interleave by weights, or one that can't.
    pub fn set_knows_weights(&self, yes: bool) {
        self.machine().knows_weights = yes;
    }

    /// Where which ranges were to be placed, as address, length and placement, in the order of the calls that were not
    /// refused. The real kernel is not asked.
    pub fn placed(&self) -> Vec<(usize, usize, Placement)> {
        self.machine().placed.clone()
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses the `n`-th call from now, counted from 1; 0 for none.
    pub fn fail_at(&self, n: usize) {
        self.calls.store(0, SeqCst);
        self.fail_at.store(n, SeqCst);
    }

    /// Refuses every call, or none.
    pub fn fail_all(&self, yes: bool) {
        self.fail_all.store(yes, SeqCst);
    }

    /// Refuses every move onto a place, or none, as late as the kernel may: what was mapped at the place is gone then.
    pub fn fail_late(&self, yes: bool) {
        self.fail_late.store(yes, SeqCst);
    }

    /// Does something in the middle of the next purge, as other threads may.
    pub fn during_purge(&self, something: fn()) {
        *self.during_purge.lock().unwrap_or_else(PoisonError::into_inner) = Some(something);
    }

    /// Calls since the script began.
    pub fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    /// Bytes that are mapped now.
    pub fn mapped(&self) -> usize {
        self.ranges().0.iter().map(|(from, to)| to - from).sum()
    }

    /// Lets `ms` milliseconds go by.
    pub fn pass_ms(&self, ms: u64) {
        self.now.fetch_add(ms, SeqCst);
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps at a multiple of this kernel's page, by cutting off the ends.
    fn place(&self, hint: usize, len: usize) -> Result<NonNull<u8>, Errno> {
        let extra = self.page - Linux.page_size();
        let at = Linux.map(hint, len + extra)?;
        let head = (at.as_ptr() as usize).wrapping_neg() % self.page;
        // SAFETY: both ends are inside the mapping made above.
        unsafe {
            if head > 0 {
                Linux.unmap(at, head)?;
            }
            if extra > head {
                Linux.unmap(at.add(head + len), extra - head)?;
            }
            Ok(at.add(head))
        }
    }

    fn script(&self) -> Result<(), Errno> {
        let n = self.calls.fetch_add(1, SeqCst) + 1;
        if self.fail_all.load(SeqCst) || n == self.fail_at.load(SeqCst) {
            return Err(Errno(libc::ENOMEM));
        }
        Ok(())
    }
}

// SAFETY: what isn't refused is the real kernel's answer, at multiples of the larger page.
unsafe impl Os for FakeOs {
    fn page_size(&self) -> usize {
        self.page
    }

    fn hint(&self) -> usize {
        0
    }

    fn now_ms(&self) -> u64 {
        self.now.load(SeqCst)
    }

    fn map(&self, hint: usize, len: usize) -> Result<NonNull<u8>, Errno> {
        self.script()?;
        assert_eq!(len % self.page, 0, "a mapping of broken pages");
        let mut ranges = self.ranges();
        let at = self.place(hint, len)?;
        at.as_ptr().expose_provenance();
        ranges.add(at, len);
        Ok(at)
    }

    unsafe fn unmap(&self, at: NonNull<u8>, len: usize) -> Result<(), Errno> {
        self.script()?;
        assert_eq!((at.as_ptr() as usize | len) % self.page, 0, "broken pages");
        let mut ranges = self.ranges();
        ranges.around(at, len);
        // SAFETY: the caller's promise.
        unsafe { Linux.unmap(at, len)? };
        ranges.remove(at, len);
        Ok(())
    }

    unsafe fn purge(&self, at: NonNull<u8>, len: usize) -> Result<(), Errno> {
        self.script()?;
        assert_eq!((at.as_ptr() as usize | len) % self.page, 0, "broken pages");
        self.ranges().around(at, len);
        let meanwhile = self.during_purge.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(something) = meanwhile {
            something();
        }
        // SAFETY: the caller's promise.
        unsafe { Linux.purge(at, len) }
    }

    unsafe fn advise_huge(&self, at: NonNull<u8>, len: usize, yes: bool) -> Result<(), Errno> {
        self.script()?;
        self.ranges().around(at, len);
        // SAFETY: the caller's promise.
        unsafe { Linux.advise_huge(at, len, yes) }
    }

    unsafe fn remap(
        &self,
        at: NonNull<u8>,
        old: usize,
        new: usize,
        onto: Option<NonNull<u8>>,
    ) -> Result<NonNull<u8>, Errno> {
        self.script()?;
        assert_eq!((at.as_ptr() as usize | old | new) % self.page, 0, "broken pages");
        let mut ranges = self.ranges();
        ranges.around(at, old);
        if let Some(onto) = onto {
            ranges.around(onto, new);
            if self.fail_late.load(SeqCst) {
                // SAFETY: the caller's promise: nobody uses the place.
                unsafe { Linux.unmap(onto, new)? };
                ranges.remove(onto, new);
                return Err(Errno(libc::ENOMEM));
            }
        }
        // The real kernel moves to multiples of its own page.
        let place = match onto {
            None if new > old && self.page > Linux.page_size() => Some(self.place(0, new)?),
            onto => onto,
        };
        // SAFETY: the caller's promise; a place made here is nobody's.
        let moved = unsafe { Linux.remap(at, old, new, place)? };
        moved.as_ptr().expose_provenance();
        ranges.remove(at, old);
        if let Some(onto) = onto {
            ranges.remove(onto, new);
        }
        ranges.add(moved, new);
        Ok(moved)
    }

    unsafe fn wall(&self, at: usize, len: usize, ours: bool) -> Result<bool, Errno> {
        self.script()?;
        assert_eq!((at | len) % self.page, 0, "broken pages");
        let mut ranges = self.ranges();
        let Some(page) = NonNull::new(with_exposed_provenance_mut(at)) else { return Ok(false) };
        if ours {
            ranges.around(page, len);
        }
        // SAFETY: the caller's promise.
        let done = unsafe { Linux.wall(at, len, ours)? };
        if done && !ours {
            ranges.add(page, len);
        }
        Ok(done)
    }

    fn allowed_nodes(&self) -> Result<NodeSet, Errno> {
        self.script()?;
        self.machine().allowed
    }

    unsafe fn place(&self, at: NonNull<u8>, len: usize, on: Placement) -> Result<(), Errno> {
        self.script()?;
        assert_eq!((at.as_ptr() as usize | len) % self.page, 0, "broken pages");
        self.ranges().around(at, len);
        let mut machine = self.machine();
        // The real kernel refuses a set without a single node that may be used.
        if machine.allowed?.and(on.nodes).is_empty() {
            return Err(Errno(libc::EINVAL));
        }
        machine.placed.push((at.as_ptr() as usize, len, on));
        Ok(())
    }

    fn knows_weights(&self) -> bool {
        self.script().is_ok() && self.machine().knows_weights
    }

    fn cpu(&self) -> Option<usize> {
        self.machine().cpu
    }

    /// In parts of 3 bytes, so that whoever reads finds every number broken somewhere; but a node's `meminfo`, of which the
    /// first lines count, in one.
    fn read(&self, path: &CStr, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), Errno> {
        self.script()?;
        let path = path.to_string_lossy();
        let text = self.machine().files.get(&*path).cloned().ok_or(Errno(libc::ENOENT))?;
        let part = if path.ends_with("meminfo") { text.len() } else { 3 };
        let _ = text.as_bytes().chunks(part.max(1)).all(each);
        Ok(())
    }
}
