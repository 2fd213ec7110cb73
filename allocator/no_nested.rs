//! In place of `nested`, in models: there are no handlers.

use crate::class::Slot;
use crate::fault::Misuse;

pub(crate) fn give_back(_: *mut u8, _: Option<Slot>) -> Option<Result<(), Misuse>> {
    None
}

pub(crate) fn has(_: *mut u8) -> bool {
    false
}
