//! A kernel that refuses, at every single call: null or a good block, and nothing is lost.

use super::*;
use crate::options::Values;

const OPERATIONS: usize = 220;

/// The same operations in every run, as far as memory lets it.
struct Script {
    program: Program,
    numbers: Numbers,
}

impl Script {
    fn new() -> Self {
        let program = Program::new(FakeOs::new());
        program.heap.knobs.set(&Values { retain: 1 << 20, ..Values::DEFAULT });
        program.heap.granules.spread(2);
        Self { program, numbers: Numbers::new(7) }
    }

    fn step(&mut self, i: usize) {
        let (program, numbers) = (&mut self.program, &mut self.numbers);
        // The same numbers are drawn whatever the heap has, so that the runs stay alike.
        let layout = match numbers.under(8) {
            0 => Layout::from_size_align(3 << 20, 1 << 23),
            1 => Layout::from_size_align(numbers.sized(22), 16),
            2 | 3 => Layout::from_size_align(32768 + numbers.sized(19), 16),
            _ => Ok(any_layout(numbers)),
        };
        let layout = layout.expect("a layout");
        let (kind, pick, who) = (numbers.under(32), numbers.under(1 << 20), numbers.under(3));
        let live = program.blocks.len();
        match kind {
            0 => program.enroll(),
            1 if !program.threads.is_empty() => {
                program.dismiss(pick % program.threads.len());
            }
            2 => program.purge(who),
            3..=6 if live > 0 => {
                // To a size of its own kind, or of any.
                let block = program.blocks[pick % live];
                let near = block.layout.size() * 5 / 4 + 1;
                let size = if i & 1 == 0 { near } else { layout.size() };
                program.realloc(who, pick % live, size);
            }
            7..=14 if live > 0 => program.free(who, pick % live),
            _ => {
                program.alloc(who, layout);
            }
        }
        program.os().pass_ms(40);
    }

    /// After the refusals: half of the memory is freed, and is served again; then nothing is left.
    fn recover(mut self) -> Program {
        let program = &mut self.program;
        program.os().fail_all(false);
        program.os().fail_at(0);
        let half: Vec<_> = (0..program.blocks.len() / 2)
            .map(|_| {
                let i = self.numbers.under(program.blocks.len());
                let layout = program.blocks[i].layout;
                program.free(1, i);
                layout
            })
            .collect();
        for layout in half {
            assert!(program.alloc(1, layout), "{layout:?} after it was freed");
        }
        program.check();
        program.finish();
        self.program
    }
}

#[test]
fn any_one_call_may_be_refused() {
    let mut refused = 0;
    for n in 1.. {
        let mut script = Script::new();
        script.program.os().fail_at(n);
        for i in 0..OPERATIONS {
            script.step(i);
        }
        if script.program.os().calls() < n {
            assert_eq!(script.program.nulls, 0);
            break;
        }
        refused += 1;
        script.program.check();
        let program = script.recover();
        let accounts = program.heap.granules.source.accounts();
        assert!(accounts.refused_maps + accounts.refused_others <= 1, "one call: {accounts:?}");
        assert_eq!(accounts.mapped, program.os().mapped(), "call {n}: {accounts:?}");
    }
    // Twice as many where mappings have to be cut to lie as they should.
    assert!(refused > 40, "the script makes {refused} calls");
}

#[test]
fn every_call_may_be_refused_for_a_while() {
    let mut nulls = 0;
    for first in (0..OPERATIONS).step_by(5) {
        let mut script = Script::new();
        for i in 0..OPERATIONS {
            script.program.os().fail_all((first..first + 25).contains(&i));
            script.step(i);
        }
        script.program.check();
        nulls += script.program.nulls;
        script.recover();
    }
    assert!(nulls > 50, "{nulls} operations without memory");
}

#[test]
fn a_thread_that_got_no_memory_has_its_whole_budget_after() {
    let mut program = Program::new(FakeOs::new());
    program.enroll();
    program.os().fail_all(true);
    for size in (16..=1024).step_by(16) {
        for _ in 0..50 {
            assert!(!program.alloc(0, Layout::from_size_align(size, 1).expect("a layout")));
        }
    }
    program.os().fail_all(false);
    program.check();
    assert!(program.alloc(0, Layout::new::<u64>()));
    program.check();
    program.finish();
}

#[test]
fn a_heap_without_any_memory_says_so() {
    let mut program = Program::new(FakeOs::new());
    program.os().fail_all(true);
    program.enroll();
    assert!(program.threads.is_empty());
    let mut numbers = Numbers::new(3);
    for n in 1..200 {
        program.alloc(0, any_layout(&mut numbers));
        assert_eq!(program.nulls, n + 1);
    }
    assert_eq!(program.os().mapped(), 0);
    program.os().fail_all(false);
    assert!(program.alloc(0, Layout::new::<u64>()));
    program.check();
    program.finish();
}
