//! One line for standard error, built where nothing may allocate.
//! Owns: `Line`. Called by: whoever has something to tell; writing it out is theirs.
//!
//! R1: a line is at most `LINE_BYTES` long, newline included; what does not fit ends in `...`.

use core::fmt::{self, Write};

/// Fits a pipe's atomic write, so lines of several threads and processes do not mix.
pub(crate) const LINE_BYTES: usize = 256;
const CUT: &[u8] = b"...";

/// A line of text in the making.
pub(crate) struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Line {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; LINE_BYTES], len: 0 }
    }

    /// Appends what fits.
    #[inline(never)]
    pub(crate) fn push(&mut self, text: fmt::Arguments<'_>) {
        self.push_at_most(LINE_BYTES, text);
    }

    /// Appends at most `most` bytes of `text`, so that what follows has its room.
    #[inline(never)]
    pub(crate) fn push_at_most(&mut self, most: usize, text: fmt::Arguments<'_>) {
        // The last byte is the newline's.
        let end = self.len.saturating_add(most).min(LINE_BYTES - 1);
        // The writer has marked the place when it fails, and there is nobody to tell.
        let _ = Part { line: self, end }.write_fmt(text);
    }

    /// Ends the line, and returns it with its newline.
    pub(crate) fn finish(&mut self) -> &[u8] {
        self.len = self.len.min(LINE_BYTES - 1);
        if let Some(byte) = self.bytes.get_mut(self.len) {
            *byte = b'\n';
            self.len += 1;
        }
        self.as_bytes()
    }

    /// The line as far as it is written.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        Part { line: self, end: LINE_BYTES - 1 }.write_str(text)
    }
}

/// The part of a line that ends before `end`.
struct Part<'l> {
    line: &'l mut Line,
    end: usize,
}

impl Write for Part<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.end.saturating_sub(self.line.len);
        let fits = text.len().min(room);
        if let (Some(to), Some(from)) = (
            self.line.bytes.get_mut(self.line.len..self.line.len + fits),
            text.as_bytes().get(..fits),
        ) {
            to.copy_from_slice(from);
        }
        self.line.len += fits;
        if fits == text.len() {
            return Ok(());
        }
        let mark = self.end.saturating_sub(CUT.len())..self.end;
        if let Some(to) = self.line.bytes.get_mut(mark).filter(|to| to.len() == CUT.len()) {
            to.copy_from_slice(CUT);
        }
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_fits_is_whole() {
        let mut line = Line::new();
        line.push(format_args!("a {}", 1));
        line.push_at_most(3, format_args!("{}", "bcd"));
        assert_eq!(line.finish(), b"a 1bcd\n");
    }

    #[test]
    fn a_part_that_does_not_fit_leaves_room_for_the_next() {
        let mut line = Line::new();
        line.push_at_most(8, format_args!("{}", "0123456789"));
        line.push(format_args!(" end"));
        assert_eq!(line.finish(), b"01234... end\n");
    }

    #[test]
    fn no_line_is_longer_than_a_line() {
        for long in 0..600 {
            let mut line = Line::new();
            line.push(format_args!("{:long$}", "x"));
            line.push(format_args!("tail"));
            let whole = line.finish();
            assert_eq!(whole.last(), Some(&b'\n'));
            assert!(whole.len() <= LINE_BYTES);
            assert_eq!(whole.ends_with(b"...\n"), long.max(1) + 4 > LINE_BYTES - 1, "{long}");
        }
    }
}
