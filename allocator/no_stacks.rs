//! In place of `stacks`, in programs without the feature `leak-stacks`: nobody asks who allocated what.

use crate::cache::Cache;
use core::fmt::{self, Write};

/// Would keep stacks from now on.
pub(crate) fn keep(_on: bool) {}

/// The number of no stack.
#[inline(always)]
pub(crate) fn here(_cache: Option<&Cache>) -> usize {
    0
}

/// Writes nothing.
pub(crate) fn write(_out: &mut dyn Write) -> fmt::Result {
    Ok(())
}
