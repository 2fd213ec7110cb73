//! Which mapping of the process an address is in, as the kernel lists them (feature `leak-stacks`).
//! Owns: `Region`. Called by: `stacks`, about the thread's own stack, and about code at exit.

use core::str;
use nearheap_numa::Os;
use nearheap_numa::os::Linux;

/// Bytes of a path that are kept.
const PATH: usize = 256;
/// Bytes of a line that are looked at: numbers, rights and spaces come before the path.
const LINE: usize = 80 + PATH;

/// A mapping.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Where the first mapping of its file begins: what debuggers count from.
    pub(crate) base: usize,
    path: [u8; PATH],
}

impl Region {
    /// The file's name, or what the kernel calls it; empty where it has none.
    pub(crate) fn path(&self) -> &str {
        let text = self.path.split(|&b| b == 0).next().unwrap_or_default();
        str::from_utf8(text).unwrap_or("?")
    }
}

/// The mapping that an address is in.
#[cold]
#[inline(never)]
pub(crate) fn region_of(address: usize) -> Option<Region> {
    let (mut line, mut len, mut base, mut found) = ([0; LINE], 0, 0, None);
    let _ = Linux.read(c"/proc/self/maps", &mut |part| {
        for &byte in part {
            if byte != b'\n' {
                if let Some(place) = line.get_mut(len) {
                    *place = byte;
                    len += 1;
                }
                continue;
            }
            let (offset, mut region) = region(line.get(..len).unwrap_or_default());
            // Mappings of one file follow each other, the beginning of the file first.
            if offset == 0 {
                base = region.start;
            }
            region.base = base;
            len = 0;
            if (region.start..region.end).contains(&address) {
                found = Some(region);
                return false;
            }
        }
        true
    });
    found
}

/// What a line says, and the offset in the file: `start-end rights offset device inode path`.
fn region(line: &[u8]) -> (usize, Region) {
    let (start, rest) = hex(line);
    let (end, rest) = hex(rest);
    // Behind the four letters of the rights.
    let (offset, rest) = hex(rest.get(5..).unwrap_or_default());
    let named = rest.iter().position(|&byte| byte == b'/' || byte == b'[').unwrap_or(rest.len());
    let mut path = [0; PATH];
    path.iter_mut().zip(rest.iter().skip(named)).for_each(|(to, from)| *to = *from);
    (offset, Region { start, end, base: 0, path })
}

/// The number that a text begins with, and what follows behind the byte after it.
fn hex(text: &[u8]) -> (usize, &[u8]) {
    let (mut n, mut rest) = (0, text);
    while let [byte, after @ ..] = rest {
        rest = after;
        let Some(digit) = char::from(*byte).to_digit(16) else { break };
        n = n << 4 | digit as usize;
    }
    (n, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_and_what() {
        let line = b"7f12c0a00000-7f12c0a21000 r-xp 00028000 fe:01 1234      /usr/lib/a b.so";
        let (offset, found) = region(line);
        assert_eq!((found.start, found.end), (0x7f12_c0a0_0000, 0x7f12_c0a2_1000));
        assert_eq!((offset, found.path()), (0x28000, "/usr/lib/a b.so"));
        let (offset, stack) = region(b"7ffd1000-7ffd3000 rw-p 00000000 00:00 0      [stack]");
        assert_eq!((offset, stack.path()), (0, "[stack]"));
        let (_, bare) = region(b"7ffd1000-7ffd3000 ---p 00000000 00:00 0 ");
        assert_eq!((bare.start, bare.end, bare.path()), (0x7ffd_1000, 0x7ffd_3000, ""));
        let (_, none) = region(b"");
        assert_eq!((none.start, none.end, none.path()), (0, 0, ""));
    }

    #[test]
    fn an_address_is_found_in_its_file() {
        let here = region_of as fn(usize) -> Option<Region> as usize;
        let region = region_of(here).unwrap();
        let exe = std::env::current_exe().unwrap();
        assert!(exe.to_str().unwrap().starts_with(region.path()), "{region:?}");
        assert!(region.base <= region.start && here < region.end);
        assert!(region_of(16).is_none());
    }
}
