//! Models of the whole heap: two threads at once in every layer.

use super::{Thread, check, check_in};
use crate::part::SHARDS;
use core::alloc::Layout;

const SMALL: Layout = Layout::new::<[u64; 6]>();
/// More than a page.
const MEDIUM: Layout = Layout::new::<[u64; 1024]>();
/// A run of pages that no cache keeps; two of them share a chunk.
const SPAN: Layout = Layout::new::<[u64; 5 << 10]>();
const HUGE: Layout = Layout::new::<[u64; 256 << 10]>();

fn nothing(_: Thread<'_>, _: Thread<'_>) {}

/// The magazine is full, and each thread is going to free blocks of both shards.
fn full_magazine(a: Thread<'_>, b: Thread<'_>) {
    for (to, other) in [(a, b), (b, a)] {
        to.alloc_for(to, SMALL);
        other.alloc_for(to, SMALL);
    }
    let rest: Vec<_> = (0..5).map(|_| a.alloc(SMALL).unwrap()).collect();
    rest.into_iter().for_each(|block| a.free(block));
}

#[test]
fn blocks_freed_by_other_threads_overflow_into_their_shards() {
    check(
        4,
        full_magazine,
        |t| {
            t.free_owned();
            t.free_owned();
            t.alloc(SMALL).unwrap();
        },
        |t| {
            t.free_owned();
            t.free_owned();
            t.alloc(SMALL).unwrap();
        },
    );
}

#[test]
fn a_thread_ends_while_another_empties_the_magazines() {
    check(
        4,
        full_magazine,
        |t| {
            t.free_owned();
            t.end();
        },
        |t| {
            t.world.heap.empty_magazines().unwrap();
            t.alloc(SMALL).unwrap();
        },
    );
}

#[test]
fn threads_come_and_go_at_once() {
    let come_and_go = |t: Thread<'_>| {
        let cache = t.world.heap.enroll().unwrap();
        let t = Thread { cache, ..t };
        t.alloc(SMALL).unwrap();
        t.end();
    };
    // Two caches wait for them, and the magazine has a block for each.
    let came_and_went = |a: Thread<'_>, b: Thread<'_>| {
        full_magazine(a, b);
        a.end();
        b.end();
    };
    check(3, came_and_went, come_and_go, come_and_go);
}

#[test]
fn two_shards_grow_at_once() {
    let alloc = |t: Thread<'_>| {
        t.alloc(SMALL).unwrap();
    };
    check(1, nothing, alloc, alloc);
}

#[test]
fn one_shard_grows_for_two_threads_at_once() {
    let alloc = |t: Thread<'_>| {
        t.alloc(SMALL).unwrap();
    };
    check(2, |_, b| b.cache.home.set(0), alloc, alloc);
}

#[test]
fn a_segment_is_unmapped_while_it_is_asked_for_a_block() {
    check(
        4,
        |a, b| {
            a.alloc_for(b, SMALL);
            b.cache.home.set(0);
        },
        |t| {
            t.alloc(SMALL).unwrap();
        },
        |t| {
            t.free_owned();
            // SAFETY: the cache is this thread's.
            unsafe { t.world.heap.purge_all(Some(t.cache)) };
        },
    );
}

#[test]
fn pages_are_purged_while_their_neighbours_are_taken() {
    check(
        2,
        |a, b| {
            a.alloc_for(b, MEDIUM);
            a.alloc(SMALL).unwrap();
            b.free_owned();
        },
        |t| {
            t.alloc(MEDIUM).unwrap();
        },
        |t| {
            // SAFETY: the cache is this thread's.
            unsafe { t.world.heap.purge_all(Some(t.cache)) };
        },
    );
}

#[test]
fn a_chunk_empties_while_another_thread_gives_to_it() {
    check(
        2,
        |a, b| {
            b.cache.home.set(0);
            a.alloc_for(a, SPAN);
            a.alloc_for(b, SPAN);
        },
        |t| t.free_owned(),
        |t| {
            t.free_owned();
            // SAFETY: the cache is this thread's.
            unsafe { t.world.heap.purge_all(Some(t.cache)) };
        },
    );
}

#[test]
fn a_segment_is_published_while_another_is_looked_up() {
    check(
        2,
        |a, b| a.alloc_for(b, SPAN),
        |t| {
            // Its first, in a shard of its own.
            t.cache.home.set(1);
            let block = t.alloc(SPAN).unwrap();
            t.free(block);
        },
        |t| {
            t.free_owned();
            t.alloc(SPAN).unwrap();
        },
    );
}

#[test]
fn shards_multiply_while_blocks_come_and_go() {
    check_in(
        1,
        1,
        nothing,
        |t| {
            t.world.heap.granules.spread(SHARDS);
            t.cache.home.set(1);
            t.alloc(SPAN).unwrap();
        },
        |t| {
            let block = t.alloc(SPAN).unwrap();
            t.free(block);
        },
    );
}

#[test]
fn under_the_hard_limit_a_block_is_there_or_is_not() {
    fn one_more(a: Thread<'_>, b: Thread<'_>) {
        a.alloc(SMALL).unwrap();
        b.alloc(SMALL).unwrap();
        let source = &a.world.heap.granules.source;
        source.set_limits(usize::MAX, source.committed() + (16 << 10));
    }
    let part = |t: Thread<'_>| {
        if let Some(block) = t.alloc(MEDIUM) {
            t.free(block);
        }
    };
    check(4, one_more, part, part);
}

#[test]
fn huge_blocks_are_kept_and_made_to_fit_for_one_thread_at_a_time() {
    let part = |t: Thread<'_>| {
        let block = t.alloc(HUGE).unwrap();
        t.free(block);
        t.alloc(HUGE).unwrap();
    };
    check(2, nothing, part, part);
}

/// The process forks while the other thread does `work`: no lock is entered in another order than the fork's.
fn fork_while(before: fn(Thread<'_>, Thread<'_>), work: fn(Thread<'_>)) {
    let fork = |t: Thread<'_>| {
        t.world.heap.hold();
        // SAFETY: held above.
        unsafe { t.world.heap.let_go() };
    };
    check(4, before, fork, work);
}

#[test]
fn a_fork_finds_no_lock_held_while_blocks_are_freed() {
    fork_while(full_magazine, |t| {
        t.free_owned();
        t.free_owned();
    });
}

#[test]
fn a_fork_finds_no_lock_held_while_the_heap_grows() {
    fork_while(nothing, |t| {
        t.alloc(SMALL).unwrap();
    });
}

#[test]
fn a_fork_finds_no_lock_held_while_a_thread_comes_and_goes() {
    fork_while(nothing, |t| {
        let cache = t.world.heap.enroll().unwrap();
        Thread { cache, ..t }.end();
    });
}

#[test]
fn a_fork_finds_no_lock_held_while_everything_is_purged() {
    fork_while(full_magazine, |t| {
        t.free_owned();
        // SAFETY: the cache is this thread's.
        unsafe { t.world.heap.purge_all(Some(t.cache)) };
    });
}

#[test]
fn a_fork_finds_no_lock_held_while_a_huge_block_comes_and_goes() {
    fork_while(nothing, |t| {
        let block = t.alloc(HUGE).unwrap();
        t.free(block);
    });
}
