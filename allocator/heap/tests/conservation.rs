//! Random operations of several threads: after any of them, every block is in one place and is counted once.

use super::*;
use crate::options::Values;
use crate::testing::steps;
use rstest::rstest;

#[rstest]
#[case::no_cache(0, 0, 63, 1)]
#[case::one_thread(1, 256 << 10, 63, 2)]
#[case::threads(4, 256 << 10, 63, 3)]
#[case::tiny_caches(2, 0, 1, 4)]
#[case::small_caches(3, 8 << 10, 5, 5)]
fn every_block_is_in_one_place(
    #[case] threads: usize,
    #[case] cache_bytes: usize,
    #[case] slot_blocks: usize,
    #[case] seed: u64,
) {
    let (mut program, mut numbers) = (Program::new(FakeOs::new()), Numbers::new(seed));
    let values = Values { retain: 2 << 20, cache_bytes, slot_blocks, ..Values::DEFAULT };
    program.heap.knobs.set(&values);
    if threads == 2 {
        let table = [1, 2, 5, 12, 40, 64, 200];
        program.heap.granules.classes.coarsen(|g| table.into_iter().find(|&larger| larger >= g));
    }
    program.heap.granules.spread(threads);
    (0..threads).for_each(|_| program.enroll());
    for step in 0..steps(400_000) {
        // The last of them has no cache.
        let who = numbers.under(program.threads.len() + 1);
        let live = program.blocks.len();
        match numbers.under(20) {
            // Half of the traffic in a few sizes, so that caches and magazines fill.
            0..=4 => {
                let size = 40 * (1 + numbers.under(4));
                program.alloc(who, Layout::from_size_align(size, 8).expect("a layout"));
            }
            5..=8 => {
                program.alloc(who, any_layout(&mut numbers));
            }
            9 if live > 0 => {
                let (i, size) = (numbers.under(live), any_layout(&mut numbers).size());
                program.realloc(who, i, size);
            }
            _ if live > 0 => program.free(who, numbers.under(live)),
            _ => {}
        }
        if numbers.once_in(500) && threads > 0 {
            match numbers.under(3) {
                0 => program.purge(who),
                1 if !program.threads.is_empty() => {
                    program.dismiss(who % program.threads.len());
                }
                _ => program.enroll(),
            }
            program.os().pass_ms(50);
        }
        if step % 500 == 0 {
            program.check();
        }
    }
    assert_eq!(program.nulls, 0);
    program.check();
    program.finish();
    let accounts = program.heap.granules.source.accounts();
    assert_eq!(accounts.mapped, program.os().mapped());
}

#[test]
fn an_over_aligned_span_has_the_alignment_of_spans() {
    let mut program = Program::new(FakeOs::new());
    let layout = Layout::from_size_align(40 << 10, SPAN_ALIGN).expect("a layout");
    assert!(program.alloc(0, layout));
    program.check();
    program.finish();
}
