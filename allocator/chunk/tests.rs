//! A chunk against a list of 4096 booleans: every answer is the list's, the bounds never hide a run.

use super::*;
use crate::testing::{Numbers, steps};
use rstest::rstest;
use std::boxed::Box;
use std::vec::Vec;

struct Model {
    chunk: Box<Chunk>,
    free: Vec<bool>,
    /// Blocks: where, and how long.
    blocks: Vec<(usize, usize)>,
}

impl Model {
    fn new() -> Self {
        let words = [Word { free: 0, starts: 0 }; WORDS];
        let mut chunk = Box::new(Chunk { words, most: [0; WORDS], empty: 0 });
        chunk.reset();
        Self { chunk, free: std::vec![true; CHUNK_GRANULES], blocks: Vec::new() }
    }

    /// The first place at a multiple of `align` with `k` free granules.
    fn first(&self, k: usize, align: usize) -> Option<usize> {
        let mut run = 0;
        for (g, &free) in self.free.iter().enumerate() {
            run = if free { run + 1 } else { 0 };
            let at = (g + 1 - run).next_multiple_of(align);
            if at + k == g + 1 {
                return Some(at);
            }
        }
        None
    }

    /// The free run that granule `g` is in.
    fn run_around(&self, g: usize) -> Run {
        let at = self.free[..g].iter().rposition(|&f| !f).map_or(0, |g| g + 1);
        let len = self.free[at..].iter().position(|&f| !f).unwrap_or(CHUNK_GRANULES - at);
        Run { at, len }
    }

    fn find(&mut self, k: usize, align: usize) -> Option<Run> {
        let found = self.chunk.find(k, align);
        assert_eq!(found.map(|run| run.at), self.first(k, align), "{k} granules, align {align}");
        if let Some(run) = found {
            let len = self.free[run.at..].iter().take_while(|&&f| f).count();
            assert_eq!(run.len, len, "{run:?} for {k}");
        }
        found
    }

    fn take(&mut self, at: usize, k: usize) {
        self.chunk.take(at, k);
        self.chunk.set_start(at);
        self.free[at..at + k].fill(false);
        self.blocks.push((at, k));
    }

    /// Gives `n` blocks that follow each other, if so many do; else one.
    fn give(&mut self, i: usize, n: usize) {
        let (at, mut len) = self.blocks.swap_remove(i);
        self.chunk.clear_start(at);
        for _ in 1..n {
            let Some(next) = self.blocks.iter().position(|b| b.0 == at + len) else { break };
            let (start, k) = self.blocks.swap_remove(next);
            self.chunk.clear_start(start);
            len += k;
        }
        let run = self.chunk.give(at, len);
        self.free[at..at + len].fill(true);
        assert_eq!(run, self.run_around(at).len);
    }

    fn compare(&mut self, numbers: &mut Numbers) {
        let at = numbers.under(CHUNK_GRANULES);
        let len = numbers.sized(12).min(CHUNK_GRANULES - at);
        let range = &self.free[at..at + len];
        assert_eq!(self.chunk.is_free(at, len), range.iter().all(|&f| f));
        assert_eq!(self.chunk.is_taken(at, len), range.iter().all(|&f| !f));
        let starts = self.blocks.iter().filter(|b| (at..at + len).contains(&b.0)).count();
        assert_eq!(self.chunk.no_start(at, len), starts == 0);
        assert_eq!(self.chunk.is_start(at), self.blocks.iter().any(|b| b.0 == at));
        let run = self.free[at..].iter().position(|&f| !f).unwrap_or(CHUNK_GRANULES - at);
        assert_eq!(self.chunk.run_at(at), run);
    }

    fn audit(&self) {
        let free = self.free.iter().filter(|&&f| f).count();
        let longest = self.free.split(|&f| !f).map(<[bool]>::len).max().unwrap_or(0);
        assert_eq!(self.chunk.audit(), Some((free, longest)));
    }
}

#[rstest]
#[case::crumbs(4, 1)]
#[case::small(6, 2)]
#[case::large(9, 3)]
#[case::all(12, 4)]
#[case::full(3, 5)]
fn every_answer_is_that_of_a_list(#[case] log: usize, #[case] seed: u64) {
    let (mut model, mut numbers) = (Model::new(), Numbers::new(seed));
    // Fills and drains in waves, so that the chunk is seen empty, full and crumbled.
    let mut filling = true;
    for step in 0..steps(1_000_000) {
        if numbers.once_in(if filling { 3 } else { 2 }) && !model.blocks.is_empty() {
            let n = if filling { 1 } else { 1 + numbers.under(4) };
            model.give(numbers.under(model.blocks.len()), n);
        } else {
            let align = if numbers.once_in(2) { 1 } else { numbers.sized(11).next_power_of_two() };
            let size = numbers.sized(log);
            let k = if numbers.once_in(4) { size } else { size.next_multiple_of(align) };
            match model.find(k, align) {
                Some(run) => {
                    let fit = if numbers.once_in(4) { run.len / k } else { 1 };
                    (0..fit.min(64)).for_each(|i| model.take(run.at + i * k, k));
                }
                None => filling = false,
            }
        }
        filling |= model.blocks.len() < 16;
        if step % 128 == 0 {
            model.compare(&mut numbers);
            model.audit();
        }
    }
    while !model.blocks.is_empty() {
        model.give(0, 1);
    }
    assert_eq!(model.chunk.audit(), Some((CHUNK_GRANULES, CHUNK_GRANULES)));
    assert_eq!(model.find(CHUNK_GRANULES, 1), Some(Run { at: 0, len: CHUNK_GRANULES }));
}

#[rstest]
#[case::word_after_its_run_begins(60, 16, 16, 64)]
#[case::words_after_its_run_begins(1, 64, 64, 64)]
#[case::far_after_its_run_begins(65, 64, 1024, 1024)]
#[case::long(1, 65, 128, 128)]
fn an_aligned_place_is_found_in_a_run_that_begins_before_its_word(
    #[case] taken: usize,
    #[case] k: usize,
    #[case] align: usize,
    #[case] at: usize,
) {
    let mut model = Model::new();
    model.take(0, taken);
    assert_eq!(model.find(k, align).map(|run| run.at), Some(at));
}
