//! The measurement of one run.
//! Owns: `Probe` (what a workload gets), `Scale`, `Report`. Called by: `main` and every workload.
//!
//! P1: the time of `untimed` and of `peak` is not in the report's. P2: nothing is allocated between the first number that
//! is read and the last.

use crate::allocator::{self, Accounts};
use crate::kernel::{self, Usage};
use std::time::{Duration, Instant};

/// How much work a run does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Half a second or more with a good allocator: for results.
    Full,
    /// About a tenth of that: for a first look.
    Quick,
    /// As little as shows that it works: for tests.
    Tiny,
}

impl Scale {
    /// The scale called `name`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "full" => Some(Self::Full),
            "quick" => Some(Self::Quick),
            "tiny" => Some(Self::Tiny),
            _ => None,
        }
    }
}

/// What the process was at the moment that the workload named as its fullest.
#[derive(Clone, Copy)]
pub(crate) struct Point {
    rss: u64,
    live: Option<(u64, u64)>,
    accounts: Option<Accounts>,
}

/// The clock and the gauges of one run.
pub(crate) struct Probe {
    scale: Scale,
    untimed: Duration,
    untimed_cpu: Duration,
    point: Option<Point>,
    children: Option<(u64, u64)>,
}

/// What a run showed.
pub(crate) struct Report {
    checksum: u64,
    time: Duration,
    rss_start: u64,
    rss_peak: u64,
    rss_freed: u64,
    live_start: Option<(u64, u64)>,
    live_end: Option<(u64, u64)>,
    usage: Usage,
    point: Option<Point>,
}

impl Probe {
    /// Runs `workload` and reports.
    pub(crate) fn run(workload: impl FnOnce(&mut Self) -> u64, scale: Scale) -> Report {
        let mut probe = Self {
            scale,
            untimed: Duration::ZERO,
            untimed_cpu: Duration::ZERO,
            point: None,
            children: None,
        };
        let (live_start, rss_start) = (allocator::live_bytes(), kernel::resident_bytes());
        let usage_start = kernel::usage();
        let start = Instant::now();
        let checksum = workload(&mut probe);
        let time = start.elapsed().saturating_sub(probe.untimed);
        let mut usage = kernel::usage() - usage_start;
        usage.cpu = usage.cpu.saturating_sub(probe.untimed_cpu);
        let (rss_freed, rss_peak) = (kernel::resident_bytes(), kernel::peak_resident_bytes());
        let (rss_peak, rss_freed) = probe.children.unwrap_or((rss_peak, rss_freed));
        Report {
            checksum,
            time,
            rss_start,
            rss_peak,
            rss_freed,
            live_start,
            live_end: allocator::live_bytes(),
            usage,
            point: probe.point,
        }
    }

    /// The number for the scale of this run.
    pub(crate) fn pick(&self, full: usize, quick: usize, tiny: usize) -> usize {
        match self.scale {
            Scale::Full => full,
            Scale::Quick => quick,
            Scale::Tiny => tiny,
        }
    }

    /// Does `work` outside of the measured time.
    pub(crate) fn untimed<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let before = (self.untimed, self.untimed_cpu);
        let (start, usage_start) = (Instant::now(), kernel::usage());
        let result = work(self);
        // What was nested in `work` is part of it.
        self.untimed = before.0 + start.elapsed();
        self.untimed_cpu = before.1 + (kernel::usage() - usage_start).cpu;
        result
    }

    /// Reads the gauges, outside of the measured time. A workload calls it once, when most of its memory is in use.
    pub(crate) fn peak(&mut self) {
        self.untimed(|probe| {
            probe.point = Some(Point {
                rss: kernel::resident_bytes(),
                live: allocator::live_bytes(),
                accounts: allocator::accounts(),
            });
        });
    }

    /// Reports the resident memory of child processes instead of this one's: the most of it, and that at the end.
    pub(crate) fn children(&mut self, rss_peak: u64, rss_freed: u64) {
        self.children = Some((rss_peak, rss_freed));
    }
}

impl Report {
    /// The report as one line of JSON.
    pub(crate) fn to_json(&self, workload: &str) -> serde_json::Value {
        let point = self.point;
        let above_start = |live: (u64, u64)| {
            self.live_start
                .map(|start| (live.0.saturating_sub(start.0), live.1.saturating_sub(start.0)))
        };
        let live_point = point.and_then(|point| point.live).and_then(above_start);
        let live_end = self.live_end.and_then(above_start);
        serde_json::json!({
            "allocator": allocator::name(),
            "workload": workload,
            "checksum": format!("{:016x}", self.checksum),
            "time_ns": nanoseconds(self.time),
            "cpu_ns": nanoseconds(self.usage.cpu),
            "rss_start": self.rss_start,
            "rss_peak": self.rss_peak,
            "rss_freed": self.rss_freed,
            "rss_point": point.map(|point| point.rss),
            "live_peak": live_end.map(|(_, peak)| peak),
            "live_freed": live_end.map(|(now, _)| now),
            "live_point": live_point.map(|(now, _)| now),
            "faults_minor": self.usage.minor_faults,
            "faults_major": self.usage.major_faults,
            "accounts": point.and_then(|point| point.accounts).map(|accounts| serde_json::json!({
                "allocated": accounts.allocated,
                "active": accounts.active,
                "resident": accounts.resident,
                "metadata": accounts.metadata,
            })),
        })
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
