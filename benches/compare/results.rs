//! The numbers of all runs, and what follows from them.
//! Owns: `Results` and its parts. Called by: `main`, and by `table`, `chart` and `json`, which only print.
//!
//! R1: two allocators are compared round by round, because the machine is slower in some rounds than in others: their ratio
//!     is the median of the ratios within a round. R2: an allocator that failed in one round of a row takes no part in it.
//! R3: a peer is any allocator other than `OURS`.

use crate::catalog::workload;
use serde_json::Value;

/// The allocator that the others are compared with.
pub(crate) const OURS: &str = "nearheap";
/// A row in which ours is worse than the best peer by more than this is marked.
pub(crate) const MARK_ABOVE: f64 = 1.25;
/// Rows with fewer live bytes say nothing on overhead: the program itself takes more.
const MIN_LIVE: f64 = (4 << 20) as f64;

/// What is measured, and is better when it is less.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    Time,
    Cpu,
    Peak,
    Freed,
    Faults,
}

impl Measure {
    pub(crate) const ALL: [Self; 5] =
        [Self::Time, Self::Cpu, Self::Peak, Self::Freed, Self::Faults];

    /// Its name in the JSON file.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Time => "time_ns",
            Self::Cpu => "cpu_ns",
            Self::Peak => "rss_peak",
            Self::Freed => "rss_freed",
            Self::Faults => "faults",
        }
    }

    /// Its name for people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Time => "time, ms",
            Self::Cpu => "CPU time, ms",
            Self::Peak => "peak RSS, MiB",
            Self::Freed => "RSS after freeing, MiB",
            Self::Faults => "page faults",
        }
    }

    /// Whether a row that is far behind in it is marked.
    pub(crate) fn is_marked(self) -> bool {
        matches!(self, Self::Time | Self::Peak)
    }

    fn of(self, run: &Value) -> f64 {
        match self {
            Self::Faults => number(run, "faults_minor") + number(run, "faults_major"),
            _ => number(run, self.key()),
        }
    }
}

/// The runs of one allocator on one workload: a report of `workload` for each round, or why there is none.
#[derive(Default)]
pub(crate) struct Cell {
    pub(crate) runs: Vec<Value>,
    pub(crate) failure: Option<String>,
}

impl Cell {
    /// The median over the rounds.
    pub(crate) fn median(&self, measure: Measure) -> Option<f64> {
        self.over_rounds(|run| Some(measure.of(run)))
    }

    /// The median of the ratios to `other` within a round.
    pub(crate) fn ratio(&self, other: &Self, measure: Measure) -> Option<f64> {
        if self.failure.is_some() || other.failure.is_some() {
            return None;
        }
        let pairs = self.runs.iter().zip(&other.runs);
        let ratios: Vec<f64> = pairs
            .map(|(run, other)| (measure.of(run), measure.of(other)))
            .filter(|(run, other)| *run > 0.0 && *other > 0.0)
            .map(|(run, other)| run / other)
            .collect();
        median(&ratios)
    }

    /// The median of what `read` finds in the runs.
    pub(crate) fn over_rounds(&self, read: impl Fn(&Value) -> Option<f64>) -> Option<f64> {
        if self.failure.is_some() {
            return None;
        }
        median(&self.runs.iter().filter_map(read).collect::<Vec<f64>>())
    }

    fn checksum(&self) -> Option<&str> {
        self.runs.first()?["checksum"].as_str()
    }
}

/// One workload over all allocators, in the order of [`Results::allocators`].
pub(crate) struct Row {
    pub(crate) workload: &'static str,
    /// The report of the build that counts what the workload asks for.
    pub(crate) counted: Cell,
    pub(crate) cells: Vec<Cell>,
}

/// Everything that was measured.
#[derive(Default)]
pub(crate) struct Results {
    pub(crate) allocators: Vec<&'static str>,
    pub(crate) rows: Vec<Row>,
}

impl Results {
    /// Our place in every row.
    pub(crate) fn ours(&self) -> Option<usize> {
        self.allocators.iter().position(|allocator| *allocator == OURS)
    }

    /// The places of the peers.
    pub(crate) fn peers(&self) -> impl Iterator<Item = usize> {
        (0..self.allocators.len()).filter(|place| Some(*place) != self.ours())
    }

    /// The peer with the lowest median in the row.
    pub(crate) fn best_peer(&self, row: &Row, measure: Measure) -> Option<usize> {
        let medians =
            self.peers().filter_map(|peer| Some((peer, row.cells.get(peer)?.median(measure)?)));
        medians.min_by(|one, other| one.1.total_cmp(&other.1)).map(|(peer, _)| peer)
    }

    /// Our ratio to one peer in the row.
    pub(crate) fn ratio_to(&self, row: &Row, peer: usize, measure: Measure) -> Option<f64> {
        row.cells.get(self.ours()?)?.ratio(row.cells.get(peer)?, measure)
    }

    /// Our ratio to the best peer of the row.
    pub(crate) fn ratio_to_best(&self, row: &Row, measure: Measure) -> Option<f64> {
        self.ratio_to(row, self.best_peer(row, measure)?, measure)
    }

    /// Whether we are far behind the best peer in what matters most.
    pub(crate) fn is_behind(&self, row: &Row) -> bool {
        let marked = Measure::ALL.into_iter().filter(|measure| measure.is_marked());
        marked
            .filter_map(|measure| self.ratio_to_best(row, measure))
            .any(|ratio| ratio > MARK_ABOVE)
    }

    /// The geometric mean over the rows of our ratio to `peer`, or to the best peer of each row.
    pub(crate) fn mean_ratio(&self, peer: Option<usize>, measure: Measure) -> Option<f64> {
        geometric_mean(self.rows.iter().filter_map(|row| match peer {
            Some(peer) => self.ratio_to(row, peer, measure),
            None => self.ratio_to_best(row, measure),
        }))
    }

    /// How many rows `mean_ratio` is over.
    pub(crate) fn compared_rows(&self, peer: Option<usize>) -> usize {
        let compared = |row: &&Row| match peer {
            Some(peer) => self.ratio_to(row, peer, Measure::Time).is_some(),
            None => self.ratio_to_best(row, Measure::Time).is_some(),
        };
        self.rows.iter().filter(compared).count()
    }

    /// The workloads whose sum differs between allocators or rounds, with the sums.
    pub(crate) fn disagreements(&self) -> Vec<String> {
        self.rows.iter().filter_map(|row| row.disagreement(&self.allocators)).collect()
    }
}

impl Row {
    /// Resident bytes at the peak per byte that the program has then.
    ///
    /// What is resident before the workload in the build that counts is the program's own and is left out, for all
    /// allocators alike; what an allocator sets aside before it is asked for anything is in.
    pub(crate) fn peak_overhead(&self, place: usize) -> Option<f64> {
        let (live, base) = self.counted("live_peak")?;
        let peak = self.cells.get(place)?.over_rounds(|run| run["rss_peak"].as_f64())?;
        Some((peak - base) / live)
    }

    /// At the moment that the workload names: resident bytes as the kernel and as the allocator counts them, and the bytes
    /// that the allocator says it handed out, each per byte that the program has.
    pub(crate) fn point_overheads(&self, place: usize) -> Option<[f64; 3]> {
        let (live, base) = self.counted("live_point")?;
        let cell = self.cells.get(place)?;
        let kernel = cell.over_rounds(|run| run["rss_point"].as_f64())? - base;
        let own = |key| cell.over_rounds(|run| run["accounts"][key].as_f64());
        Some([kernel / live, own("resident")? / live, own("allocated")? / live])
    }

    /// The live bytes that the counting build tells under `key`, where they are the same in every run and enough to divide
    /// by; and what was resident in it before the workload.
    pub(crate) fn counted(&self, key: &str) -> Option<(f64, f64)> {
        let steady = workload(self.workload).is_some_and(|workload| workload.steady);
        let live = self.counted.over_rounds(|run| run[key].as_f64())?;
        let base = self.counted.over_rounds(|run| run["rss_start"].as_f64())?;
        (steady && live >= MIN_LIVE).then_some((live, base))
    }

    fn disagreement(&self, allocators: &[&str]) -> Option<String> {
        let sums = self.cells.iter().flat_map(|cell| &cell.runs).chain(&self.counted.runs);
        let mut sums = sums.map(|run| run["checksum"].as_str());
        let first = sums.next()?;
        if sums.all(|sum| sum == first) {
            return None;
        }
        let names = allocators.iter().zip(&self.cells);
        let each: Vec<String> =
            names.filter_map(|(name, cell)| Some(format!("{name} {}", cell.checksum()?))).collect();
        Some(format!("{}: the results differ: {}", self.workload, each.join(", ")))
    }
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    sorted.get(sorted.len() / 2 - 1).map(|lower| f64::midpoint(*lower, upper))
}

/// The mean of ratios: the root of their product.
pub(crate) fn geometric_mean(ratios: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for ratio in ratios {
        sum += ratio.ln();
        count += 1.0;
    }
    (count > 0.0).then(|| (sum / count).exp())
}

fn number(run: &Value, key: &str) -> f64 {
    run[key].as_f64().unwrap_or(0.0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    /// A cell with these times in ms, and this resident memory in MiB.
    pub(crate) fn cell(times: &[u64], rss: u64) -> Cell {
        let run = |time: &u64| {
            json!({"time_ns": time * 1_000_000, "cpu_ns": time * 2_000_000, "rss_peak": rss << 20, "rss_freed": rss << 19,
                "rss_start": 1 << 21, "rss_point": rss << 20, "faults_minor": rss * 256, "faults_major": 0,
                "checksum": "00ff", "accounts": {"resident": rss << 20, "allocated": rss << 19}})
        };
        Cell { runs: times.iter().map(run).collect(), failure: None }
    }

    /// Two workloads over three allocators, one of which fails in the second.
    pub(crate) fn results() -> Results {
        let counted = || Cell {
            runs: vec![
                json!({"checksum": "00ff", "live_peak": 8 << 20, "live_point": 8 << 20, "rss_start": 1 << 20}),
            ],
            failure: None,
        };
        let failed = Cell { runs: Vec::new(), failure: Some("signal 11".into()) };
        Results {
            allocators: vec!["nearheap", "glibc", "jemalloc"],
            rows: vec![
                Row {
                    workload: "json",
                    counted: counted(),
                    cells: vec![
                        cell(&[10, 40, 12], 11),
                        cell(&[20, 80, 24], 10),
                        cell(&[25, 90, 30], 20),
                    ],
                },
                Row {
                    workload: "tiny",
                    counted: counted(),
                    cells: vec![cell(&[80, 80, 80], 20), cell(&[40, 40, 40], 10), failed],
                },
            ],
        }
    }

    fn near(found: Option<f64>, expected: f64) {
        let found = found.unwrap();
        assert!((found - expected).abs() < 1e-9, "{found} instead of {expected}");
    }

    #[rstest]
    #[case(&[3.0], 3.0)]
    #[case(&[9.0, 1.0, 2.0], 2.0)]
    #[case(&[4.0, 1.0, 2.0, 100.0], 3.0)]
    fn the_median_is_in_the_middle(#[case] numbers: &[f64], #[case] middle: f64) {
        near(median(numbers), middle);
    }

    #[rstest]
    #[case(&[2.0, 0.5], 1.0)]
    #[case(&[1.0, 8.0, 1.0], 2.0)]
    fn the_geometric_mean_is_the_root_of_the_product(#[case] ratios: &[f64], #[case] mean: f64) {
        near(geometric_mean(ratios.iter().copied()), mean);
    }

    #[test]
    fn of_nothing_there_is_no_mean() {
        assert_eq!((median(&[]), geometric_mean([])), (None, None));
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        // The medians are 12 and 20, but in every round it was half.
        near(cell(&[10, 40, 12], 1).ratio(&cell(&[20, 80, 20], 1), Measure::Time), 0.5);
        near(cell(&[12], 6).ratio(&cell(&[3], 4), Measure::Peak), 1.5);
    }

    #[test]
    fn a_row_is_compared_with_its_best_peer_in_each_measure() {
        let results = results();
        let row = &results.rows[0];
        assert_eq!(results.best_peer(row, Measure::Time), Some(1));
        near(results.ratio_to_best(row, Measure::Time), 0.5);
        near(results.ratio_to_best(row, Measure::Peak), 1.1);
        assert!(!results.is_behind(row));
        assert!(results.is_behind(&results.rows[1]));
    }

    #[test]
    fn means_leave_out_rows_in_which_a_peer_failed() {
        let results = results();
        near(results.mean_ratio(None, Measure::Time), 1.0);
        near(results.mean_ratio(Some(1), Measure::Peak), (1.1_f64 * 2.0).sqrt());
        near(results.mean_ratio(Some(2), Measure::Peak), 0.55);
        assert_eq!((results.compared_rows(Some(1)), results.compared_rows(Some(2))), (2, 1));
    }

    #[test]
    fn overhead_is_resident_memory_over_live_bytes() {
        let row = &results().rows[0];
        near(row.peak_overhead(0), 10.0 / 8.0);
        let [kernel, resident, allocated] = row.point_overheads(0).unwrap();
        near(Some(kernel), 10.0 / 8.0);
        near(Some(resident), 11.0 / 8.0);
        near(Some(allocated), 5.5 / 8.0);
    }

    #[test]
    fn sums_that_differ_are_told() {
        let mut results = results();
        assert!(results.disagreements().is_empty());
        results.rows[0].cells[1].runs[0]["checksum"] = json!("0bad");
        assert_eq!(
            results.disagreements(),
            ["json: the results differ: nearheap 00ff, glibc 0bad, jemalloc 00ff"]
        );
    }
}
