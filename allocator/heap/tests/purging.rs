//! What goes back to where others find it, and when: idle slots, sparse pages, and the budget of free pages.

use super::*;
use crate::options::Values;

const MIB: usize = 1 << 20;

fn bytes(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a layout")
}

fn program(values: &Values) -> Program {
    let mut program = Program::new(FakeOs::new());
    program.heap.knobs.set(values);
    program.enroll();
    program
}

#[test]
fn the_blocks_of_a_slot_that_is_not_used_leave_the_cache() {
    let mut program = program(&Values { slot_blocks: 2, ..Values::DEFAULT });
    let idle = Slot::small(48);
    (0..2).for_each(|_| assert!(program.alloc(0, bytes(48))));
    (0..2).for_each(|_| program.free(0, 0));
    let cached = |program: &Program| program.cache(0).map(|cache| cache.state(idle).n);
    assert_eq!(cached(&program), Some(2));
    // Of four operations on two blocks, one at least is cold, and every sixteenth of these looks at one slot.
    for _ in 0..2 * 16 * crate::class::SLOTS {
        (0..4).for_each(|_| assert!(program.alloc(0, bytes(100))));
        (0..4).for_each(|_| program.free(0, 0));
    }
    assert_eq!(cached(&program), Some(0));
    program.check();
    program.finish();
}

#[test]
fn where_few_blocks_hold_many_pages_the_magazines_are_emptied() {
    let mut program = program(&Values { retain: MIB, ..Values::DEFAULT });
    // Blocks that wait in a magazine, since their thread has ended.
    program.enroll();
    (0..20).for_each(|_| assert!(program.alloc(1, bytes(1000))));
    (0..20).for_each(|_| program.free(1, 0));
    program.dismiss(1);
    let waiting = |program: &Program| program.heap.depots.get(0).count(Slot::small(1000));
    assert!(waiting(&program) > 0);
    (0..8 * MIB / 64).for_each(|_| assert!(program.alloc(0, bytes(64))));
    assert!(waiting(&program) > 0);
    // All but one on every page: neighbours leave together, and those that stay keep the pages in use.
    for i in (0..program.blocks.len()).rev().filter(|i| i % 64 != 0) {
        program.free(0, i);
    }
    assert_eq!(waiting(&program), 0);
    program.check();
    program.finish();
}

#[test]
fn what_was_purged_and_needed_again_raises_the_budget() {
    let mut program = program(&Values { retain: MIB, ..Values::DEFAULT });
    let spans = |program: &mut Program| {
        (0..128).for_each(|_| assert!(program.alloc(0, bytes(128 << 10))));
        // Some stay, so that no segment is all free: those are unmapped, which nobody regrets.
        for i in (program.blocks.len() - 128..program.blocks.len()).rev().filter(|i| i % 16 != 0) {
            program.free(0, i);
        }
        program.heap.granules.source.retained()
    };
    let first = spans(&mut program);
    assert!(first <= MIB + MIB / 4, "{first} bytes are kept");
    program.os().pass_ms(10);
    let second = spans(&mut program);
    assert!(second > first + MIB / 4, "{first} bytes were kept, and regretted, and then {second}");
    program.check();
    program.finish();
}
