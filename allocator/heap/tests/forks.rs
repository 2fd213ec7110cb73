//! What a fork enters: every lock there is, so that the child finds each of them free.

use super::*;
use crate::testing::is_held;

/// How many locks are held, and how many there are.
fn held(heap: &Heap<FakeOs>) -> (usize, usize) {
    let own = [is_held(&heap.registry), is_held(&heap.budget), heap.huge.is_held()];
    let counts = [heap.depots.get(0).held(), heap.granules.held()];
    let held = own.iter().filter(|&&held| held).count();
    counts.iter().fold((held, own.len()), |sum, count| (sum.0 + count.0, sum.1 + count.1))
}

#[test]
fn a_fork_enters_every_lock_and_leaves_them_all() {
    let mut program = Program::new(FakeOs::new());
    assert_eq!(held(&program.heap).0, 0);
    program.heap.hold();
    let (entered, locks) = held(&program.heap);
    assert_eq!(entered, locks);
    // SAFETY: entered above.
    unsafe { program.heap.let_go() };
    assert_eq!(held(&program.heap), (0, locks));
    program.enroll();
    assert!(program.alloc(0, Layout::new::<u64>()));
    program.finish();
}
