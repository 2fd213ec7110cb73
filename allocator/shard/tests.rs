//! What the tests of the layers above ask of a shard.

use super::*;

impl Shard {
    /// D1 and D2, and the segments' own invariants.
    pub(crate) fn audit(&mut self) -> bool {
        self.find_group(|group| {
            for i in ones(group.listed) {
                // SAFETY: a listed segment is published, and touched under this lock only (D1).
                let segment = unsafe { &mut *group.segments[i] };
                let (granules, pages) = segment.longest_runs();
                let bounded = usize::from(group.in_use[i]) >= granules
                    && usize::from(group.spans[i]) >= pages
                    && (group.empties >> i & 1 == 1 || !segment.has_empties());
                let placed =
                    ptr::eq(segment.place.group, group) && usize::from(segment.place.index) == i;
                if !bounded || !placed || !segment.audit() {
                    return Some(false);
                }
            }
            None
        })
        .unwrap_or(true)
    }
}
